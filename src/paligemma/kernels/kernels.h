/* What the products and the decoder step share. Matrices are stored in panels of 16 rows.

   A panel holds 16 neighbouring rows (outputs) of a matrix [n, k], column by column, so that one
   load brings the weights of several outputs for the same input. The last panel is filled up with
   zero rows, and k is filled up with zero columns to a multiple of PG_ALIGN_K(kind).

   Bytes of one panel, by kind, with K the filled-up k:
     PG_F32   float[K][16]
     PG_BF16  uint16[K/2][16][2]                a pair of columns of each row
     PG_FP8   uint8[K][16]                      e4m3 (448 the largest), and a scale a row
     PG_INT8  int8[K/2][16][2]                  -127..127, and a scale a row
     PG_INT4  {uint8[4][16][4]; half[16]}[K/32] in byte [q][row][i] column 4q+i of a group of 32
                                                columns (low half), column 16+4q+i (high half), and
                                                a scale a group; a weight is (code - 8) * scale
     PG_NF4   {uint8[32][16]; half[16]}[K/64]   in byte [j][row] column 2j of a block (low half),
                                                column 2j+1 (high half), and the block's largest
                                                magnitude; a weight is NF4[code] * magnitude

   Inputs lie in tiles of up to 6 rows: those of a tile side by side, column by column. */
#ifndef PALIGEMMA_KERNELS_H
#define PALIGEMMA_KERNELS_H
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { PG_F32, PG_BF16, PG_FP8, PG_INT8, PG_INT4, PG_NF4, PG_NUM_KINDS };
enum { PG_PANEL = 16 };

typedef struct {
  int32_t kind, n, k;
  const void *data;   /* its panels */
  const float *scale; /* PG_FP8, PG_INT8: float[16] a panel; else unused */
} pg_matrix;

/* Rows of inputs as a kind of matrix wants them: float for the float kinds, else quantised. */
enum { PG_TILE = 6 };
typedef struct {
  int32_t kind, m, k;
  void *rows;         /* a tile of r rows: float[K][r]; PG_INT8 int16[K/2][r][2]; PG_INT4 int8[K/4][r][4] */
  float *scale;       /* PG_INT8: float[m]; PG_INT4: float[K/32][r] a tile */
  int32_t *start;     /* PG_INT4: int16[K/32][r][2] a tile, minus eight times the sums of a group */
} pg_input;

size_t pg_panel_bytes(int kind, int k);
size_t pg_input_bytes(int kind, int m, int k);
void pg_input_place(pg_input *in, void *memory, int kind, int m, int k); /* memory aligned to 64 */
void pg_input_row(pg_input *in, int row, const float *x);                /* any thread, any order */

/* Panels that a thread takes at once: enough bytes to read in one go, and some turns for every thread. */
int pg_panels_at_once(const pg_matrix *w, int num_panels, int team);
/* y[r * ldy + 0..15] = rows of `in` times panel `panel` of w, only as far as w has rows, of several
   panels side by side: of few rows, each alone would wait for its own sums. */
typedef struct {
  const pg_matrix *w; /* all of the kind of `in` */
  float *y;
  int panel;
} pg_part;
void pg_parts(const pg_part *parts, int count, const pg_input *in, size_t ldy);

/* Rows float[n][k], or bfloat16, `ld` numbers apart, into the panels and scales of w. */
void pg_pack(const pg_matrix *w, const void *rows, size_t ld, int is_bf16);
/* y[m, n] = x[m, k] w^T + bias, all float32; `bias` may be NULL. */
void pg_multiply(const pg_matrix *w, const float *x, size_t ldx, const float *bias, float *y,
                 size_t ldy, int m);

/* sums[6][16] += inputs[columns][6] times a float panel [columns][16], for each output a chain of fused
   multiplications in the order of the columns. */
void pg_float_tile(const float *panel, const float *inputs, int columns, float *sums);

/* The level of the processor that functions use: 0 plain C, then those of level.c; all products have
   the same bits. */
int pg_level(void);
void pg_set_level(int wanted); /* or the best that the processor has */

/* A job's threads take its pieces until none are left; how many threads come does not matter. */
typedef void (*pg_job)(void *argument, int thread, int team);
void pg_run(pg_job job, void *argument); /* on all threads */
/* On the caller's thread, and on up to team - 1 others: those that have not begun when the caller is
   through do nothing, so it waits for no thread that gets no processor. */
void pg_offer(pg_job job, void *argument, int team);
int pg_num_threads(void);

/* A number that only grows; threads wait until it has grown enough. Whoever makes it reach what they
   wait for wakes those that sleep. What is done before an advance is seen behind the wait. */
typedef struct {
  atomic_int value, sleepers;
} pg_event;
void pg_await(pg_event *e, int wanted);
void pg_advance(pg_event *e, int count, int wanted);

void pg_advise_huge(void *memory, size_t size);
void *pg_new_memory(size_t size); /* aligned to 64, for the caller to free; in huge pages if large */
const char *pg_sources(void); /* a fingerprint of the sources it was built from, or nothing */

void *pg_scratch(size_t size); /* memory of the calling thread, until it asks again */

#endif
