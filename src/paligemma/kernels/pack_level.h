/* One panel of 16 rows, packed in vectors of eight of its rows; pack.c includes this file. */

#define INLINE TARGET static inline __attribute__((always_inline))
/* Adding it rounds to a whole number, to even where two are as near, and leaves it in the low bits. */
#define ROUND 12582912.0f

INLINE f8 LEVEL(choose)(i8 where, f8 yes, f8 no) {
  return (f8)((where & (i8)yes) | (~where & (i8)no));
}
INLINE f8 LEVEL(magnitude)(f8 x) { return (f8)((u8)x & 0x7fffffff); }
INLINE u8 LEVEL(whole)(f8 x) { return (u8)(x + ROUND); }

/* Within the range of int4; NaN stays NaN. */
INLINE f8 LEVEL(code)(f8 x) { return LARGER((f8){0} - 8.0f, SMALLER((f8){0} + 7.0f, x)); }

INLINE u8 LEVEL(to_bf16)(f8 x) {
  u8 bits = (u8)x, is_nan = (u8)(x != x);
  u8 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (rounded & ~is_nan) | (((bits >> 16) | 64) & is_nan);
}

/* To the nearest; what is too large becomes the largest. */
INLINE u8 LEVEL(to_half)(f8 x) {
  f8 a = LEVEL(magnitude)(x);
  a = LEVEL(choose)(a > 65504.0f, (f8){0} + 65504.0f, a);
  u8 bits = (u8)a, is_small = (u8)(a < 0x1p-14f), is_nan = (u8)(a != a);
  u8 normal = (bits + 0xfff + ((bits >> 13) & 1) - 0x38000000) >> 13;
  u8 rounded = (LEVEL(whole)(a * 0x1p24f) & 0x7ff & is_small) | (normal & ~is_small);
  return (((u8)x >> 16) & 0x8000) | (rounded & ~is_nan) | (0x7e00 & is_nan);
}

INLINE f8 LEVEL(from_half)(u8 half) {
  f8 a = (f8)((half & 0x7fff) << 13) * 0x1p112f;
  return (f8)((u8)a | ((half & 0x8000) << 16));
}

INLINE u8 LEVEL(to_e4m3)(f8 x) {
  f8 a = LEVEL(magnitude)(x);
  u8 is_small = (u8)(a < 0x1p-6f), bits = (u8)LEVEL(choose)(a < 448.0f, a, (f8){0} + 448.0f);
  u8 normal = (bits + 0x7ffff + ((bits >> 20) & 1) - (120u << 23)) >> 20;
  return (((u8)x >> 24) & 0x80) | (LEVEL(whole)(a * 512.0f) & 15 & is_small) | (normal & ~is_small);
}

/* The sixteen rows from column `first` on; what the matrix does not have is zero. */
INLINE void LEVEL(read)(const packing *a, int panel, int first, float (*rows)[CHUNK]) {
  const pg_matrix *w = a->w;
  int num = w->k - first < CHUNK ? w->k - first : CHUNK;
  for (int r = 0; r < PG_PANEL; r++) {
    int n = panel * PG_PANEL + r, c = 0;
    size_t at = (size_t)n * a->ld + (size_t)first;
    if (n >= w->n) num = 0;
    if (a->is_bf16) {
      const uint16_t *from = (const uint16_t *)a->rows + at;
      for (; c + 8 <= num; c += 8) *(u8_anywhere *)(rows[r] + c) = WIDEN(from + c) << 16;
      for (; c < num; c++) rows[r][c] = from_bf16(from[c]);
    } else if (num > 0) memcpy(rows[r], (const float *)a->rows + at, (size_t)num * sizeof(float));
    for (c = num; c < CHUNK; c++) rows[r][c] = 0;
  }
}

/* The scale of a group of int4 codes -8..7, of each row: that of least squared error among those that
   rounding to the largest value and three refinements by least squares give. */
INLINE void LEVEL(int4_scales)(const f8 (*w)[2], f8 *best) {
  f8 largest[2] = {{0}}, least[2], scale[2];
  i8 going[2];
  for (int c = 0; c < GROUP; c++)
    for (int h = 0; h < 2; h++)
      largest[h] = LEVEL(choose)(LEVEL(magnitude)(w[c][h]) > LEVEL(magnitude)(largest[h]), w[c][h],
                                 largest[h]);
  for (int h = 0; h < 2; h++) best[h] = (f8){0}, least[h] = (f8){0} + INFINITY;
  for (int start = 0; start < 2; start++) {
    for (int h = 0; h < 2; h++) {
      scale[h] = largest[h] / (start ? 7.5f : -8.0f);
      going[h] = largest[h] != 0;
    }
    for (int turn = 0; turn < 4; turn++) {
      f8 inverse[2], rounded[2], error[2] = {{0}}, along[2] = {{0}}, square[2] = {{0}};
      for (int h = 0; h < 2; h++) {
        inverse[h] = 1 / scale[h];
        rounded[h] = LEVEL(from_half)(LEVEL(to_half)(scale[h]));
      }
      for (int c = 0; c < GROUP; c++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
          f8 q = w[c][h] * inverse[h];
          q = LEVEL(code)(q) + ROUND - ROUND;
          f8 off = w[c][h] - q * rounded[h];
          along[h] = along[h] + w[c][h] * q;
          square[h] = square[h] + q * q;
          error[h] = error[h] + off * off;
        }
      for (int h = 0; h < 2; h++) {
        i8 better = going[h] & (error[h] < least[h]);
        best[h] = LEVEL(choose)(better, scale[h], best[h]);
        least[h] = LEVEL(choose)(better, error[h], least[h]);
        going[h] &= (square[h] != 0) & (along[h] != 0);
        scale[h] = along[h] / square[h];
      }
    }
  }
}

INLINE void LEVEL(pack_int4)(const f8 (*w)[2], char *codes) {
  f8 scales[2];
  LEVEL(int4_scales)(w, scales);
  for (int h = 0; h < 2; h++) {
    u8 half = LEVEL(to_half)(scales[h]);
    f8 scale = LEVEL(from_half)(half);
    f8 inverse = LEVEL(choose)(scale != 0, 1 / scale, (f8){0});
    *(u16x8_anywhere *)(codes + 256 + 16 * h) = __builtin_convertvector(half, u16x8);
    for (int q = 0; q < 4; q++) {
      u8 word = {0};
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) {
        f8 x = w[i / 4 * 16 + 4 * q + i % 4][h] * inverse;
        word |= ((u8)(LEVEL(code)(x) + (ROUND + 8)) & 15) << (i / 4 * 4 + i % 4 * 8);
      }
      *(u8_anywhere *)(codes + 64 * q + 32 * h) = word;
    }
  }
}

INLINE void LEVEL(pack_nf4)(const f8 (*w)[2], char *codes) {
  for (int h = 0; h < 2; h++) {
    f8 largest = {0};
    for (int c = 0; c < BLOCK; c++) {
      f8 a = LEVEL(magnitude)(w[c][h]);
      largest = LARGER(a, largest);
    }
    u8 half = LEVEL(to_half)(largest);
    f8 inverse = LEVEL(choose)((i8)(half != 0), 1 / LEVEL(from_half)(half), (f8){0});
    *(u16x8_anywhere *)(codes + BLOCK * 8 + 16 * h) = __builtin_convertvector(half, u16x8);
    for (int c = 0; c < BLOCK; c += 2) {
      f8 even = w[c][h] * inverse, odd = w[c + 1][h] * inverse;
      i8 below = {0}, below_odd = {0}; /* minus the number of borders that are passed */
#pragma GCC unroll 15
      for (int i = 0; i < 15; i++) {
        float border = (NF4[i] + NF4[i + 1]) / 2;
        below += even > border;
        below_odd += odd > border;
      }
      u8 byte = (u8)(-below - below_odd * 16);
      *(u8x8_anywhere *)(codes + c / 2 * 16 + 8 * h) = BYTES(byte);
    }
  }
}

/* Columns of the other kinds, by pairs. */
INLINE void LEVEL(pack_pairs)(int kind, const f8 (*w)[2], int num, const f8 *inverse, char *codes) {
  for (int c = 0; c < num; c += 2)
    for (int h = 0; h < 2; h++) {
      f8 even = w[c][h], odd = w[c + 1][h];
      if (kind == PG_F32) {
        *(f8_anywhere *)(codes + c * 64 + 32 * h) = even;
        *(f8_anywhere *)(codes + c * 64 + 64 + 32 * h) = odd;
      } else if (kind == PG_BF16) {
        u8 both = LEVEL(to_bf16)(even) | LEVEL(to_bf16)(odd) << 16;
        *(u8_anywhere *)(codes + c * 32 + 32 * h) = both;
      } else if (kind == PG_FP8) {
        u8 first = LEVEL(to_e4m3)(even * inverse[h]), second = LEVEL(to_e4m3)(odd * inverse[h]);
        *(u8x8_anywhere *)(codes + c * 16 + 8 * h) = BYTES(first);
        *(u8x8_anywhere *)(codes + c * 16 + 16 + 8 * h) = BYTES(second);
      } else {
        u8 first = LEVEL(whole)(even * inverse[h]), second = LEVEL(whole)(odd * inverse[h]);
        u8 both = (first & 255) | (second & 255) << 8;
        *(u16x8_anywhere *)(codes + c * 16 + 16 * h) = __builtin_convertvector(both, u16x8);
      }
    }
}

TARGET static void LEVEL(pack_panel)(const packing *a, int panel, const float *inverses) {
  int kind = a->w->kind, columns = padded(kind, a->w->k);
  float rows[PG_PANEL][CHUNK];
  f8 turned[CHUNK][2], inverse[2] = {*(const f8_anywhere *)inverses, *(const f8_anywhere *)(inverses + 8)};
  for (int first = 0; first < columns; first += CHUNK) {
    int num = columns - first < CHUNK ? columns - first : CHUNK;
    char *codes = (char *)panel_of(a->w, panel) + panel_bytes(kind, (size_t)first);
    LEVEL(read)(a, panel, first, rows);
    for (int c = 0; c < CHUNK; c++)
      for (int r = 0; r < PG_PANEL; r++) ((float *)turned[c])[r] = rows[r][c];
    switch (kind) {
      case PG_F32: LEVEL(pack_pairs)(PG_F32, turned, num, inverse, codes); break;
      case PG_BF16: LEVEL(pack_pairs)(PG_BF16, turned, num, inverse, codes); break;
      case PG_FP8: LEVEL(pack_pairs)(PG_FP8, turned, num, inverse, codes); break;
      case PG_INT8: LEVEL(pack_pairs)(PG_INT8, turned, num, inverse, codes); break;
      case PG_INT4:
        for (int c = 0; c < num; c += GROUP) LEVEL(pack_int4)(turned + c, codes + c * 9);
        break;
      default: LEVEL(pack_nf4)(turned, codes);
    }
  }
}

#undef INLINE
#undef ROUND
