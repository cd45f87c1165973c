/* What this machine could do at best: bytes read a second, and operations a second by kind. */
#include "kernels.h"

#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include "vectors.h"

static volatile uint64_t sink; /* so that no loop is dropped */

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
  const char *memory;
  size_t size;
  atomic_size_t next;
} reading;

static uint64_t read_plain(const char *p, size_t size) {
  uint64_t sum = 0, word;
  for (size_t i = 0; i + 8 <= size; i += 8) {
    memcpy(&word, p + i, 8);
    sum += word;
  }
  return sum;
}

#if defined(__x86_64__)
AVX2 static uint64_t read_avx2(const char *p, size_t size) {
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                    _mm256_setzero_si256()};
  for (size_t i = 0; i + 128 <= size; i += 128) {
    _mm_prefetch(p + i + 2048, _MM_HINT_T0);
    _mm_prefetch(p + i + 2112, _MM_HINT_T0);
    for (int j = 0; j < 4; j++)
      sum[j] = _mm256_add_epi64(sum[j], _mm256_loadu_si256((const __m256i *)(p + i + 32 * j)));
  }
  sum[0] = _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), _mm256_add_epi64(sum[2], sum[3]));
  return (uint64_t)_mm256_extract_epi64(sum[0], 0) + (uint64_t)_mm256_extract_epi64(sum[0], 3);
}
#endif

static void read_job(void *p, int thread, int team) {
  reading *r = p;
  size_t step = 1 << 18, at;
  (void)thread, (void)team;
  while ((at = atomic_fetch_add(&r->next, step)) < r->size) {
    size_t size = r->size - at < step ? r->size - at : step;
#if defined(__x86_64__)
    if (pg_level()) {
      sink += read_avx2(r->memory + at, size);
      continue;
    }
#endif
    sink += read_plain(r->memory + at, size);
  }
}

/* Bytes a second of reading memory once on all threads. */
double pg_read_speed(const void *memory, size_t size) {
  reading r = {.memory = memory, .size = size};
  double start = seconds();
  pg_run(read_job, &r);
  return (double)size / (seconds() - start);
}

typedef struct {
  long turns;
  int integers;
  atomic_int threads; /* that computed */
} computing;

#if defined(__x86_64__)
#define TEN _Pragma("GCC unroll 10") for (int j = 0; j < 10; j++)

AVX2 static void peak_float(long turns) {
  __m256 sum[10], by = _mm256_set1_ps(1.0000001f), more = _mm256_set1_ps(1e-9f);
  TEN sum[j] = _mm256_set1_ps((float)j);
  while (turns--) TEN {
      sum[j] = _mm256_fmadd_ps(sum[j], by, more);
      __asm__("" : "+x"(sum[j]));
    }
  TEN sink += (uint64_t)_mm256_extract_epi64(_mm256_castps_si256(sum[j]), 0);
}

/* Ten chains of a product and an addition of integers, each with the bits of its sum. */
#define PEAK_OF_INTEGERS(name, add, multiply)                                   \
  AVX2 static void name(long turns) {                                          \
    __m256i sum[10], weights = _mm256_set1_epi8(3), inputs = _mm256_set1_epi8(5); \
    TEN sum[j] = _mm256_set1_epi32(j);                                         \
    while (turns--) TEN {                                                      \
        sum[j] = add(sum[j], multiply(weights, inputs));                       \
        __asm__("" : "+x"(sum[j]), "+x"(inputs));                              \
      }                                                                        \
    TEN sink += (uint64_t)_mm256_extract_epi64(sum[j], 0);                     \
  }
PEAK_OF_INTEGERS(peak_int8, _mm256_add_epi16, _mm256_maddubs_epi16)
PEAK_OF_INTEGERS(peak_int16, _mm256_add_epi32, _mm256_madd_epi16)
#endif

static void peak_job(void *p, int thread, int team) {
  computing *c = p;
  (void)thread, (void)team;
  atomic_fetch_add(&c->threads, 1);
#if defined(__x86_64__)
  if (c->integers == 0) peak_float(c->turns);
  else if (c->integers == 8) peak_int8(c->turns);
  else peak_int16(c->turns);
#endif
}

/* Operations a second (a multiplication and an addition are two) of all threads from registers: of
   float32 (0), of int8 inputs and unsigned int8 weights summed in 16 bits (8) as int4 does, or of
   int16 summed in 32 (16) as int8 does. 0 where it is not known. */
double pg_peak_speed(int integers, long turns) {
  computing c = {.turns = turns, .integers = integers};
  double each = integers == 0 ? 16 : integers == 8 ? 64 : 32, start = seconds();
  if (!pg_level()) return 0;
  pg_run(peak_job, &c);
  return each * 10 * (double)turns * c.threads / (seconds() - start);
}
