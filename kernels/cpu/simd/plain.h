// Plain C++, one value at a time: the fallback, and the oracle of the other instruction sets.
// Included inside the anonymous namespace of isa_plain.cpp.

constexpr int W = 1;
constexpr int kRegisters = 16;
constexpr int kTokens = 4;  // tokens an INT4 block is multiplied with at a time
struct vf {
  float x;
};

inline vf load(const float* p) { return {*p}; }
inline void store(float* p, vf v) { *p = v.x; }
inline vf splat(float x) { return {x}; }
inline vf operator+(vf a, vf b) { return {a.x + b.x}; }
inline vf operator-(vf a, vf b) { return {a.x - b.x}; }
inline vf operator*(vf a, vf b) { return {a.x * b.x}; }
inline vf operator/(vf a, vf b) { return {a.x / b.x}; }
inline vf fma(vf a, vf b, vf c) { return {a.x * b.x + c.x}; }
inline vf vmax(vf a, vf b) { return a.x > b.x ? a : b; }
inline vf vmin(vf a, vf b) { return a.x < b.x ? a : b; }
inline vf vabs(vf a) { return {a.x < 0 ? -a.x : a.x}; }
inline vf vround(vf a) { return {__builtin_rintf(a.x)}; }
inline vf pow2(vf n) {
  const uint32_t bits = static_cast<uint32_t>(static_cast<int>(n.x) + 127) << 23;
  vf v;
  __builtin_memcpy(&v.x, &bits, 4);
  return v;
}
inline vf load_half(const uint16_t* p) { return {half_to_float(*p)}; }
inline float half_value(const uint16_t* p) { return half_to_float(*p); }
inline void store_half(uint16_t* p, vf v) {  // to nearest, ties to even
  uint32_t bits;
  __builtin_memcpy(&bits, &v.x, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  uint32_t half;
  if (bits >= 0x47800000) {  // 2^16 and above, or not a number
    half = bits > 0x7f800000 ? 0x7e00 : 0x7c00;
  } else if (bits < 0x38800000) {  // subnormal: adding 0.5 leaves value / 2^-24 in the mantissa
    float f;
    __builtin_memcpy(&f, &bits, 4);
    f += 0.5f;
    __builtin_memcpy(&half, &f, 4);
    half -= 0x3f000000;
  } else {
    half = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
  }
  *p = static_cast<uint16_t>(sign | half);
}
inline void store_sums(float* p, const vf* v, float scale) {
  for (int i = 0; i < 4; i++) p[i] = v[i].x * scale;
}
inline float hsum(vf v) { return v.x; }
inline float hmax(vf v) { return v.x; }

inline int round_int8(const float* x, vf factor, int8_t* q) {
  return *q = static_cast<int8_t>(__builtin_rintf(*x * factor.x));
}
inline void round_int16(const float* x, vf factor, int16_t* q) {
  *q = static_cast<int16_t>(__builtin_rintf(*x * factor.x));
}

struct Nibbles {
  uint8_t v[64];
};
struct Dots {
  int32_t v[16];
};
inline void unpack(const uint8_t* p, Nibbles& low, Nibbles& high) {
  for (int i = 0; i < 64; i++) low.v[i] = p[i] & 15, high.v[i] = p[i] >> 4;
}
inline void clear(Dots& d) {
  for (int r = 0; r < 16; r++) d.v[r] = 0;
}
inline void dot(Dots& d, const Nibbles& w, const int8_t* four) {
  for (int r = 0; r < 16; r++)
    for (int j = 0; j < 4; j++) d.v[r] += w.v[4 * r + j] * four[j];
}
inline void drain(vf* sums, const Dots& d, float scale) {
  for (int r = 0; r < 16; r++) sums[r].x += static_cast<float>(d.v[r]) * scale;
}
inline vf load_u8(const uint8_t* p) { return {static_cast<float>(*p)}; }
using words = uint32_t;
inline words load_words(const uint8_t* p) {
  words v;
  __builtin_memcpy(&v, p, 4);
  return v;
}
template <int i>
inline vf nibble(words v) {
  return {static_cast<float>(v >> (4 * i) & 15)};
}

struct vi {
  int64_t x;
};
struct i8s {
  const int8_t* p;
};
constexpr int kInt8Step = 16;
inline vi zero_i() { return {0}; }
inline i8s load_i8(const int8_t* p) { return {p}; }
inline vi dot_i16(vi acc, i8s w, const int16_t* x) {
  for (int i = 0; i < 16; i++) acc.x += w.p[i] * x[i];
  return acc;
}
inline vf to_float(vi v) { return {static_cast<float>(v.x)}; }
inline vf widen_i8(const int8_t* p) { return {static_cast<float>(*p)}; }
