/* What this machine could do at best: bytes read a second, and operations a second by kind. */
#include <stdatomic.h>
#include <time.h>

#include "level.h"
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

static void peak_job(void *p, int thread, int team) {
  computing *c = p;
  (void)thread, (void)team;
  atomic_fetch_add(&c->threads, 1);
  pg_level_in_use()->peak(c->integers, c->turns);
}

/* Operations a second (a multiplication and an addition are two) of all threads from registers: of
   float32 (0), of bytes as int4 sums them (8), or of int16 summed in 32 bits (16) as int8 does. 0
   where it is not known. */
double pg_peak_speed(int integers, long turns) {
  const level *own = pg_level_in_use();
  computing c = {.turns = turns, .integers = integers};
  if (!own->peak) return 0;
  double each = own->peak(integers, 1), start = seconds();
  pg_run(peak_job, &c);
  return each * (double)turns * c.threads / (seconds() - start);
}
