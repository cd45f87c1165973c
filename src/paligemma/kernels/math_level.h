/* Elementary functions of eight numbers, for the files that are included once a level. */

INLINE f8 LEVEL(load)(const float *x) { return *(const f8_anywhere *)x; }

INLINE void LEVEL(store)(float *x, f8 value) { *(f8_anywhere *)x = value; }

INLINE f8 LEVEL(choose)(i8 where, f8 yes, f8 no) {
  return (f8)((where & (i8)yes) | (~where & (i8)no));
}

/* e^x: 0 below -87, e^88 above 88, within two units in the last place between; NaN stays NaN. */
INLINE f8 LEVEL(exp)(f8 x) {
  const float round = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
  i8 none = x < -87.0f;
  x = LEVEL(choose)(x > 88.0f, (f8){0} + 88.0f, x);
  x = LEVEL(choose)(none, (f8){0} - 87.0f, x);
  f8 shifted = x * 1.44269504f + round;
  f8 n = shifted - round;
  x = x - n * 0.693359375f;
  x = x + n * 2.12194440e-4f;
  f8 p = x * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * x + 8.3334519073e-3f;
  p = p * x + 4.1665795894e-2f;
  p = p * x + 1.6666665459e-1f;
  p = p * x + 5.0000001201e-1f;
  p = p * (x * x) + x + 1.0f;
  f8 power = (f8)(((u8)shifted << 23) + 0x3f800000u);
  return (f8)((i8)(p * power) & ~none);
}

INLINE f8 LEVEL(tanh)(f8 x) {
  f8 magnitude = (f8)((i8)x & 0x7fffffff), z = x * x;
  f8 p = z * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  f8 near = p * z * x + x;
  f8 far = 1.0f - 2.0f / (LEVEL(exp)(magnitude + magnitude) + 1.0f);
  far = (f8)((i8)far | ((i8)x & (int32_t)0x80000000));
  return LEVEL(choose)(magnitude < 0.625f, near, far);
}
