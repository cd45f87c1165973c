/* Which level of the processor functions use. */
#include "level.h"
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(HAS_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

/* Each is better than the one before, and its processors have that, too. */
static const level *const LEVELS[] = {
    &pg_plain,
#if defined(__x86_64__)
    &pg_avx2, &pg_avx512,
#elif defined(HAS_NEON)
    &pg_neon,
#endif
};

static int in_use = -1;

int pg_best_level(void) {
#if defined(__x86_64__)
  unsigned a, b, c = 0, d;
  __builtin_cpu_init();
  __get_cpuid(1, &a, &b, &c, &d); /* compilers do not all know F16C by its name */
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !(c & bit_F16C)) return 0;
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")
             ? 2
             : 1;
#elif defined(HAS_NEON) && defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(HAS_NEON)
  return 1; /* every Mac with an ARM processor has dot products */
#else
  return 0;
#endif
}

int pg_level(void) {
  if (in_use < 0) in_use = pg_best_level();
  return in_use;
}

void pg_set_level(int wanted) { in_use = wanted < pg_best_level() ? wanted : pg_best_level(); }

/* NULL for a level that this library has not. */
const char *pg_level_name(int number) {
  int known = (int)(sizeof LEVELS / sizeof *LEVELS);
  return number < 0 || number >= known ? NULL : LEVELS[number]->name;
}

const level *pg_level_in_use(void) { return LEVELS[pg_level()]; }
