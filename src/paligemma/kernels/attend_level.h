/* What a thread does with the scores of sixteen queries, in vectors of eight; attend.c includes this
   file once for each level of the processor. Scores lie key by key, so that a vector holds the same
   key's scores of eight queries, and nothing is summed across a vector. */

#define INLINE TARGET static inline __attribute__((always_inline))
#include "math_level.h"

/* Scores of `count` keys become weights, not yet divided by their sum, and what was mixed before is
   brought to the new maximum. */
TARGET static void LEVEL(weigh)(float *scores, int count, float cap, float *maximum, float *sum,
                                float *mixed, int dims) {
  for (int half = 0; half < 16; half += 8) {
    float *own = scores + half;
    if (cap > 0)
      for (int i = 0; i < count; i++) {
        f8 score = LEVEL(load)(own + 16 * i);
        f8 capped = LEVEL(tanh)(score / cap) * cap;
        LEVEL(store)(own + 16 * i, LEVEL(choose)(score <= MASKED, score, capped));
      }
    f8 before = LEVEL(load)(maximum + half), largest = before, second = before;
    for (int i = 0; i + 1 < count; i += 2) {
      f8 a = LEVEL(load)(own + 16 * i), b = LEVEL(load)(own + 16 * i + 16);
      largest = LEVEL(choose)(a > largest, a, largest);
      second = LEVEL(choose)(b > second, b, second);
    }
    largest = LEVEL(choose)(second > largest, second, largest);
    f8 factor = LEVEL(exp)(before - largest), total = LEVEL(load)(sum + half) * factor;
    for (int i = 0; i < count; i++) {
      f8 weight = LEVEL(exp)(LEVEL(load)(own + 16 * i) - largest);
      LEVEL(store)(own + 16 * i, weight);
      total = total + weight;
    }
    LEVEL(store)(maximum + half, largest);
    LEVEL(store)(sum + half, total);
    for (int i = 0; i < dims; i++)
      LEVEL(store)(mixed + 16 * i + half, LEVEL(load)(mixed + 16 * i + half) * factor);
  }
}

#undef INLINE
