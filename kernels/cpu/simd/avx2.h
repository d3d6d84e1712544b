// AVX2 + FMA + F16C. Included inside the anonymous namespace of isa_avx2.cpp.

constexpr int W = 8;  // floats in a vector
constexpr int kRegisters = 16;
constexpr int kTokens = 4;  // tokens an INT4 block is multiplied with at a time
using vf = __m256;

inline vf load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, vf v) { _mm256_storeu_ps(p, v); }
inline vf splat(float x) { return _mm256_set1_ps(x); }
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
inline vf vabs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline vf vround(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vf pow2(vf n) {  // n integral, -126 .. 127
  const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
inline vf load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
inline float half_value(const uint16_t* p) { return _cvtsh_ss(*p); }
inline void store_half(uint16_t* p, vf v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline __m128 fold4(__m256 a, __m256 b, __m256 c, __m256 d) {  // the four sums
  const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}
inline void store_sums(float* p, const vf* v, float scale) {  // p[0..3] = sum(v[i]) * scale
  _mm_storeu_ps(p, _mm_mul_ps(fold4(v[0], v[1], v[2], v[3]), _mm_set1_ps(scale)));
}
inline float hsum(vf v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float hmax(vf v) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

// x[0 .. W-1] * factor rounded to int8 (returns their sum) or int16.
inline int round_int8(const float* x, vf factor, int8_t* q) {
  const __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor));
  const __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64((__m128i*)q, _mm_packs_epi16(w, w));
  const __m128i s = _mm_madd_epi16(w, _mm_set1_epi16(1));
  const __m128i t = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
  return _mm_cvtsi128_si32(t) + _mm_extract_epi32(t, 1);
}
inline void round_int16(const float* x, vf factor, int16_t* q) {
  const __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor));
  _mm_storeu_si128((__m128i*)q,
                   _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}

// --- INT4: 16 rows of W by 4 input channels at a time

struct Nibbles {
  __m256i v[2];
};
struct Dots {  // 16-bit sums: 8 steps of 2 * 15 * 127 stay under 2^15
  __m256i v[2];
};

inline void unpack(const uint8_t* p, Nibbles& low, Nibbles& high) {
  const __m256i mask = _mm256_set1_epi8(15);
  for (int h = 0; h < 2; h++) {
    const __m256i v = _mm256_load_si256((const __m256i*)p + h);
    low.v[h] = _mm256_and_si256(v, mask);
    high.v[h] = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask);
  }
}
inline void clear(Dots& d) { d.v[0] = d.v[1] = _mm256_setzero_si256(); }
inline void dot(Dots& d, const Nibbles& w, const int8_t* four) {
  int32_t word;
  __builtin_memcpy(&word, four, 4);
  const __m256i a = _mm256_set1_epi32(word);
  d.v[0] = _mm256_add_epi16(d.v[0], _mm256_maddubs_epi16(w.v[0], a));
  d.v[1] = _mm256_add_epi16(d.v[1], _mm256_maddubs_epi16(w.v[1], a));
  // Add now: GCC moves the additions behind the loop and spills every product until then.
  asm("" : "+x"(d.v[0]), "+x"(d.v[1]));
}
inline void drain(vf* sums, const Dots& d, float scale) {
  const __m256i one = _mm256_set1_epi16(1);
  for (int h = 0; h < 2; h++)
    sums[h] = fma(_mm256_cvtepi32_ps(_mm256_madd_epi16(d.v[h], one)), splat(scale), sums[h]);
}
inline vf load_u8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
// Nibble `i` (0..7) of each of W 32-bit words, as floats.
using words = __m256i;
inline words load_words(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
template <int i>
inline vf nibble(words v) {
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(v, 4 * i), _mm256_set1_epi32(15)));
}

// --- INT8 rows against int16 activations, 16 values at a time

using vi = __m256i;
using i8s = __m256i;  // widened to int16
constexpr int kInt8Step = 16;
inline vi zero_i() { return _mm256_setzero_si256(); }
inline i8s load_i8(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
}
inline vi dot_i16(vi acc, vi w, const int16_t* x) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(w, _mm256_loadu_si256((const __m256i*)x)));
}
inline vf to_float(vi v) { return _mm256_cvtepi32_ps(v); }
inline vf widen_i8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
