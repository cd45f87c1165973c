/* Vectors of eight numbers. A file ..._level.h is included once for each level of the processor:
   LEVEL(name) is the name of a function at that level, TARGET says what it may use, and the compiler
   makes a vector one register of AVX2, or two of SSE and NEON. */
#ifndef PALIGEMMA_VECTORS_H
#define PALIGEMMA_VECTORS_H
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")))
#define IN_ZMM "+v"
#endif

#pragma GCC diagnostic ignored "-Wpsabi" /* vectors never cross from one file to another */
typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef uint32_t u8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint8_t u8x8 __attribute__((vector_size(8)));
typedef float f8_anywhere __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t u8_anywhere __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t u16x8_anywhere __attribute__((vector_size(16), aligned(2), may_alias));
typedef int8_t i8x8_anywhere __attribute__((vector_size(8), aligned(1), may_alias));
typedef uint8_t u8x8_anywhere __attribute__((vector_size(8), aligned(1), may_alias));

#endif
