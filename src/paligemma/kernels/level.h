/* What a level of the processor computes; each is a file of its own: plain.c, avx2.c, avx512.c, neon.c. */
#ifndef PALIGEMMA_LEVEL_H
#define PALIGEMMA_LEVEL_H
#include "panels.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 12")
#define IN_MEMORY() __asm__ volatile("" ::: "memory")

enum { PREFETCH = 2048 };

/* Sums of a tile: float, or int32 for PG_INT8. */
typedef union {
  float f[PG_TILE][16];
  int32_t i[PG_TILE][16];
} sums;

typedef struct { /* a range of columns of a panel and of a tile of inputs */
  const char *w;
  const void *x;
  const float *scale;
  const int32_t *start;
  int columns;
} span;

/* Every output is summed column by column in one chain of fused multiplications, so that all levels,
   numbers of rows and threads give the same bits; sums of integers are exact in any order. Sums of
   PG_FP8 stand for 256 times as much. */
typedef struct {
  const char *name;
  /* Adds the products of `rows` rows (1..PG_TILE) with 16 outputs. */
  void (*tile)(int kind, int rows, const span *s, sums *a);
  /* The same of up to `most_rows` rows with the panels of `count` spans, 2 or, of 1 or 2 rows, 4, whose
     inputs are the same: as many chains of sums side by side. Float kinds; none where most_rows is 0. */
  void (*tiles)(int kind, int rows, int count, const span *s, sums *a);
  int most_rows;
  /* The same of a whole tile with columns of PG_F32 that lie in the first cache. */
  void (*wide_tile)(const span *s, sums *a);
  /* The same of the same tile with two panels; NULL where one is enough to keep the processor busy. */
  void (*two_wide_tiles)(const span *s, const char *second, sums *a, sums *b);
  /* Columns of a float panel as PG_F32 of the same sums; NULL where that does not pay. */
  void (*widen)(int kind, const char *w, int columns, float *out);
  /* A row of inputs of PG_INT8 and of PG_INT4. */
  void (*int8_row)(pg_input *in, int row, const float *x);
  void (*int4_row)(pg_input *in, int row, const float *x);
  /* Products from registers of float32 (0), as int4 sums them (8), or as int8 does (16): how many
     operations, an addition being one, are done in a turn. NULL where there is no measure. */
  int (*peak)(int integers, long turns);
} level;

const level *pg_level_in_use(void);

extern const level pg_plain;
#if defined(__x86_64__)
extern const level pg_avx2, pg_avx512;
void pg_avx2_int8_row(pg_input *in, int row, const float *x); /* AVX-512's, too */
void pg_avx2_int4_row(pg_input *in, int row, const float *x);
#elif defined(__aarch64__) && \
    (!defined(__clang__) || __clang_major__ > 16 || defined(__ARM_FEATURE_DOTPROD))
#define HAS_NEON /* older compilers have the intrinsics only where every processor has dot products */
extern const level pg_neon;
#endif

/* Functions of tiles of one kind, by the number of rows; `call` sees it as the constant m. */
#define FOR_ROWS(TARGET, name, call)                                               \
  TARGET static void name##_1(const span *s, sums *a) { enum { m = 1 }; call; }    \
  TARGET static void name##_2(const span *s, sums *a) { enum { m = 2 }; call; }    \
  TARGET static void name##_3(const span *s, sums *a) { enum { m = 3 }; call; }    \
  TARGET static void name##_4(const span *s, sums *a) { enum { m = 4 }; call; }    \
  TARGET static void name##_5(const span *s, sums *a) { enum { m = 5 }; call; }    \
  TARGET static void name##_6(const span *s, sums *a) { enum { m = 6 }; call; }
#define ROWS_OF(name) {name##_1, name##_2, name##_3, name##_4, name##_5, name##_6}
typedef void (*tiles_by_rows[PG_NUM_KINDS][PG_TILE])(const span *, sums *);

/* Ten chains of sums, as many as a processor adds to at once. `IN_REGISTER` is the assembler's word for
   one of its vectors: after it the compiler knows neither, so it leaves no product out. */
#define PEAK(TARGET, IN_REGISTER, name, type, first, add_product)       \
  TARGET static void name(long turns) {                                 \
    type sum[10], inputs = first(5);                                    \
    const type weights = first(3);                                      \
    UNROLL for (int j = 0; j < 10; j++) sum[j] = first(j);              \
    while (turns--) UNROLL for (int j = 0; j < 10; j++) {               \
        sum[j] = add_product(sum[j], weights, inputs);                  \
        __asm__ volatile("" : IN_REGISTER(sum[j]), IN_REGISTER(inputs)); \
      }                                                                 \
  }

#endif
