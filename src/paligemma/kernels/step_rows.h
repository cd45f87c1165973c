/* What a thread does with one row or one span of attention, at the level of the processor. */
#ifndef PALIGEMMA_STEP_ROWS_H
#define PALIGEMMA_STEP_ROWS_H
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "vectors.h"

enum {
  SPAN_SLOTS = 256, /* slots of a row that are attended as one */
  PART_HEAD = 8,    /* maximum and sum stand before the mixed values of a span */
};
#define MASKED (-1e30f)

/* Bytes of one head of one slot of keys or values; of PG_INT8 its scale comes first. */
static inline size_t cached_bytes(int kind, size_t head_dim) {
  if (kind == PG_INT8) return sizeof(float) + head_dim;
  return head_dim * (kind == PG_F32 ? sizeof(float) : sizeof(uint16_t));
}

/* What one thread attends at once: `group` neighbouring heads that share keys and values, over
   neighbouring slots of one row. */
typedef struct {
  int group, head_dim, num_slots, kind;
  const float *q; /* [group][head_dim], rotated and scaled */
  const char *keys, *values;
  size_t slot_bytes;
  const uint8_t *valid;     /* [num_slots] */
  const int64_t *positions; /* [num_slots] */
  int64_t too_old;          /* the last position outside the window */
  float cap;
  float *parts; /* of head g at g * part_stride: maximum, sum, values[head_dim] */
  size_t part_stride;
} span;

typedef struct {
  void (*norm)(const float *x, const float *scale, float *out, int n, float eps);
  void (*add)(float *x, const float *y, int n);
  void (*rotate)(float *x, const float *cos_sin, int half, float factor);
  void (*write)(const float *x, void *memory, int n, int kind);
  void (*attend)(const span *s);
  void (*merge)(const float *parts, int num_parts, int head_dim, float *out);
  void (*gate)(float *gate, const float *up);
  void (*cap)(float *x, int n, float cap);
} row_arithmetic;

/* Eight uint16 in memory as uint32, and eight int8 as float. */
#define WIDEN(p) __builtin_convertvector(*(const u16x8_anywhere *)(p), u8)
#define WIDEN8(p) __builtin_convertvector(*(const i8x8_anywhere *)(p), f8)
#define LEVEL(name) plain_##name
#define TARGET
#include "step_level.h"
#undef WIDEN
#undef WIDEN8
#undef LEVEL
#undef TARGET

#if defined(__x86_64__)
#define WIDEN(p) ((u8)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define WIDEN8(p) \
  ((f8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p)))))
#define LEVEL(name) avx2_##name
#define TARGET AVX2
#include "step_level.h"
#undef WIDEN
#undef WIDEN8
#undef LEVEL
#undef TARGET
#endif

static const row_arithmetic *arithmetic_of_level(void) {
#if defined(__x86_64__)
  if (pg_level() > 0) return &avx2_arithmetic;
#endif
  return &plain_arithmetic;
}

#endif
