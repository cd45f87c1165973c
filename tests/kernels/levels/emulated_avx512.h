/* The instructions that avx512.c takes, written out in vectors of gcc, so that its sums can be checked
   on any processor with AVX2: included before everything else. What each does is Intel's definition. */
#pragma GCC system_header /* names of the compiler are taken on purpose */
#include <string.h>

#include "vectors.h"
#undef AVX512
#define AVX512 AVX2
#undef IN_ZMM
#define IN_ZMM "+m"
#define __builtin_cpu_supports(feature) 1

#define EMULATED AVX2 static inline __attribute__((always_inline))
typedef int32_t i16x32 __attribute__((vector_size(64)));
typedef uint32_t u16x32 __attribute__((vector_size(64)));
typedef uint16_t u32x16 __attribute__((vector_size(64)));
union parts {
  __m512i whole;
  __m512 floats;
  __m256 half[2];
  int16_t words[32];
  int8_t bytes[64];
  uint8_t codes[64];
  int32_t numbers[16];
  float values[16];
};

EMULATED __m512i emulated_load(const void *p) {
  union parts to;
  memcpy(&to, p, 64);
  return to.whole;
}
EMULATED __m512 emulated_load_ps(const void *p) { return (__m512)emulated_load(p); }
EMULATED void emulated_store(void *p, __m512i v) { memcpy(p, &v, 64); }

EMULATED __m512i emulated_words_of_bytes(__m256i from) {
  union parts a, to;
  memcpy(&a, &from, 32);
  for (int i = 0; i < 32; i++) to.words[i] = a.bytes[i];
  return to.whole;
}
EMULATED __m512i emulated_numbers_of_codes(__m128i from) {
  union parts a, to;
  memcpy(&a, &from, 16);
  for (int i = 0; i < 16; i++) to.numbers[i] = a.codes[i];
  return to.whole;
}
EMULATED __m512 emulated_floats_of_halves(__m256i from) {
  union parts to;
  to.half[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(from));
  to.half[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(from, 1));
  return to.floats;
}
EMULATED __m512 emulated_fmadd(__m512 x, __m512 y, __m512 z) {
  union parts a = {.floats = x}, b = {.floats = y}, c = {.floats = z};
  for (int i = 0; i < 2; i++) c.half[i] = _mm256_fmadd_ps(a.half[i], b.half[i], c.half[i]);
  return c.floats;
}
EMULATED __m512 emulated_permute(__m512i codes, __m512 values) {
  union parts a = {.whole = codes}, b = {.floats = values}, to;
  for (int i = 0; i < 16; i++) to.values[i] = b.values[a.numbers[i] & 15];
  return to.floats;
}
/* Sums of two products of signed words. */
EMULATED __m512i emulated_dpwssd(__m512i sum, __m512i x, __m512i y) {
  union parts a = {.whole = x}, b = {.whole = y}, to = {.whole = sum};
  for (int i = 0; i < 32; i++) to.numbers[i / 2] += a.words[i] * b.words[i];
  return to.whole;
}
/* Sums of four products of an unsigned byte (of x) with a signed one (of y). */
EMULATED __m512i emulated_dpbusd(__m512i sum, __m512i x, __m512i y) {
  union parts a = {.whole = x}, b = {.whole = y}, to = {.whole = sum};
  for (int i = 0; i < 64; i++) to.numbers[i / 4] += a.codes[i] * b.bytes[i];
  return to.whole;
}

#define _mm512_loadu_si512(p) emulated_load(p)
#define _mm512_loadu_ps(p) emulated_load_ps(p)
#define _mm512_storeu_si512(p, v) emulated_store(p, v)
#define _mm512_storeu_ps(p, v) emulated_store(p, (__m512i)(v))
#define _mm512_set1_epi8(v) ((__m512i)(_mm512_set1_epi32((v) * 0x01010101)))
#define _mm512_set1_epi16(v) ((__m512i)(_mm512_set1_epi32((v) * 0x00010001)))
#define _mm512_set1_epi32(v) ((__m512i)((i16x32){0} + (v)))
#define _mm512_set1_ps(v) ((__m512)((__m512){0} + (float)(v)))
#define _mm512_setzero_si512() ((__m512i){0})
#define _mm512_castsi512_ps(v) ((__m512)(v))
#define _mm512_and_si512(x, y) ((__m512i)((x) & (y)))
#define _mm512_add_epi32(x, y) ((__m512i)((i16x32)(x) + (i16x32)(y)))
#define _mm512_mul_ps(x, y) ((__m512)((x) * (y)))
#define _mm512_slli_epi32(v, by) ((__m512i)((u16x32)(v) << (by)))
#define _mm512_srli_epi32(v, by) ((__m512i)((u16x32)(v) >> (by)))
#define _mm512_srli_epi16(v, by) ((__m512i)((u32x16)(v) >> (by)))
#define _mm512_cvtepi32_ps(v) ((__m512)__builtin_convertvector((i16x32)(v), __m512))
#define _mm512_cvtepi8_epi16(v) emulated_words_of_bytes(v)
#define _mm512_cvtepu8_epi32(v) emulated_numbers_of_codes(v)
#define _mm512_cvtph_ps(v) emulated_floats_of_halves(v)
#define _mm512_fmadd_ps(x, y, z) emulated_fmadd(x, y, z)
#define _mm512_permutexvar_ps(codes, values) emulated_permute(codes, values)
#define _mm512_dpwssd_epi32(sum, x, y) emulated_dpwssd(sum, x, y)
#define _mm512_dpbusd_epi32(sum, x, y) emulated_dpbusd(sum, x, y)
