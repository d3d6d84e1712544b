// AVX-512 with VNNI. Included inside an anonymous namespace.

constexpr int W = 16;  // floats in a vector
constexpr int kRegisters = 32;
constexpr int kTokens = 8;  // tokens an INT4 block is multiplied with at a time
using vf = __m512;

inline vf load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, vf v) { _mm512_storeu_ps(p, v); }
inline vf splat(float x) { return _mm512_set1_ps(x); }
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
inline vf vabs(vf a) { return _mm512_abs_ps(a); }
inline vf vround(vf a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline vf pow2(vf n) {  // n integral, -126 .. 127
  const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
inline vf load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
inline float half_value(const uint16_t* p) { return _cvtsh_ss(*p); }
inline void store_half(uint16_t* p, vf v) {
  _mm256_storeu_si256((__m256i*)p,
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline __m256 fold(vf v) {
  return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}
inline void store_sums(float* p, const vf* v, float scale) {  // p[0..3] = sum(v[i]) * scale
  const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(fold(v[0]), fold(v[1])),
                                  _mm256_hadd_ps(fold(v[2]), fold(v[3])));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  _mm_storeu_ps(p, _mm_mul_ps(four, _mm_set1_ps(scale)));
}
inline float hsum(vf v) { return _mm512_reduce_add_ps(v); }
inline float hmax(vf v) { return _mm512_reduce_max_ps(v); }

// x[0 .. W-1] * factor rounded to int8 (returns their sum) or int16.
inline int round_int8(const float* x, vf factor, int8_t* q) {
  const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), factor));
  _mm_storeu_si128((__m128i*)q, _mm512_cvtepi32_epi8(v));
  return _mm512_reduce_add_epi32(v);
}
inline void round_int16(const float* x, vf factor, int16_t* q) {
  const __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), factor));
  _mm256_storeu_si256((__m256i*)q, _mm512_cvtepi32_epi16(v));
}

// --- INT4: 16 rows of W by 4 input channels at a time

struct Nibbles {
  __m512i v;
};
struct Dots {
  __m512i v;
};
inline void unpack(const uint8_t* p, Nibbles& low, Nibbles& high) {
  const __m512i mask = _mm512_set1_epi8(15), v = _mm512_load_si512(p);
  low.v = _mm512_and_si512(v, mask);
  high.v = _mm512_and_si512(_mm512_srli_epi16(v, 4), mask);
}
inline void clear(Dots& d) { d.v = _mm512_setzero_si512(); }
inline void dot(Dots& d, const Nibbles& w, const int8_t* four) {
  int32_t word;
  __builtin_memcpy(&word, four, 4);
  d.v = _mm512_dpbusd_epi32(d.v, w.v, _mm512_set1_epi32(word));
}
inline void drain(vf* sums, const Dots& d, float scale) {
  *sums = fma(_mm512_cvtepi32_ps(d.v), splat(scale), *sums);
}
inline vf load_u8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
// Nibble `i` (0..7) of each of W 32-bit words, as floats.
using words = __m512i;
inline words load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }
template <int i>
inline vf nibble(words v) {
  return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(v, 4 * i), _mm512_set1_epi32(15)));
}

// --- INT8 rows against int16 activations

using vi = __m512i;
using i8s = __m512i;  // widened to int16
constexpr int kInt8Step = 32;
inline vi zero_i() { return _mm512_setzero_si512(); }
inline i8s load_i8(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
}
inline vi dot_i16(vi acc, i8s w, const int16_t* x) {
  return _mm512_dpwssd_epi32(acc, w, _mm512_loadu_si512(x));
}
inline vf to_float(vi v) { return _mm512_cvtepi32_ps(v); }
inline vf widen_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
