// Armv8.2 with dotprod. Included inside the anonymous namespace of isa_neon.cpp.

constexpr int W = 4;  // floats in a vector
constexpr int kRegisters = 32;
constexpr int kTokens = 4;  // tokens an INT4 block is multiplied with at a time
using vf = float32x4_t;

inline vf load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, vf v) { vst1q_f32(p, v); }
inline vf splat(float x) { return vdupq_n_f32(x); }
inline vf fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
inline vf vmax(vf a, vf b) { return vmaxq_f32(a, b); }
inline vf vmin(vf a, vf b) { return vminq_f32(a, b); }
inline vf vabs(vf a) { return vabsq_f32(a); }
inline vf vround(vf a) { return vrndnq_f32(a); }
inline vf pow2(vf n) {  // n integral, -126 .. 127
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
inline vf load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline float half_value(const uint16_t* p) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vld1_dup_u16(p))), 0);
}
inline void store_half(uint16_t* p, vf v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
inline void store_sums(float* p, const vf* v, float scale) {  // p[0..3] = sum(v[i]) * scale
  const vf s = vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
  vst1q_f32(p, vmulq_n_f32(s, scale));
}
inline float hsum(vf v) { return vaddvq_f32(v); }
inline float hmax(vf v) { return vmaxvq_f32(v); }

// x[0 .. W-1] * factor rounded to int8 (returns their sum) or int16.
inline int round_int8(const float* x, vf factor, int8_t* q) {
  const int32x4_t v = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x), factor));
  const int16x4_t w = vmovn_s32(v);
  const int8x8_t b = vmovn_s16(vcombine_s16(w, w));
  vst1_lane_s32((int32_t*)q, vreinterpret_s32_s8(b), 0);
  return vaddvq_s32(v);
}
inline void round_int16(const float* x, vf factor, int16_t* q) {
  vst1_s16(q, vmovn_s32(vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x), factor))));
}

// --- INT4: 16 rows of W by 4 input channels at a time

struct Nibbles {
  int8x16_t v[4];
};
struct Dots {
  int32x4_t v[4];
};
inline void unpack(const uint8_t* p, Nibbles& low, Nibbles& high) {
  for (int h = 0; h < 4; h++) {
    const uint8x16_t v = vld1q_u8(p + 16 * h);
    low.v[h] = vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15)));
    high.v[h] = vreinterpretq_s8_u8(vshrq_n_u8(v, 4));
  }
}
inline void clear(Dots& d) {
  for (int h = 0; h < 4; h++) d.v[h] = vdupq_n_s32(0);
}
inline void dot(Dots& d, const Nibbles& w, const int8_t* four) {
  int32_t word;
  __builtin_memcpy(&word, four, 4);
  const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(word));
  for (int h = 0; h < 4; h++) d.v[h] = vdotq_s32(d.v[h], w.v[h], a);
}
inline void drain(vf* sums, const Dots& d, float scale) {
  for (int h = 0; h < 4; h++) sums[h] = vfmaq_n_f32(sums[h], vcvtq_f32_s32(d.v[h]), scale);
}
inline vf load_u8(const uint8_t* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, 4);
  const uint16x8_t w = vmovl_u8(vcreate_u8(word));
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(w)));
}
// Nibble `i` (0..7) of each of W 32-bit words, as floats.
using words = uint32x4_t;
inline words load_words(const uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
template <int i>
inline vf nibble(words v) {
  return vcvtq_f32_u32(vandq_u32(vshlq_u32(v, vdupq_n_s32(-4 * i)), vdupq_n_u32(15)));
}

// --- INT8 rows against int16 activations

struct vi {
  int32x4_t v[2];
};
struct i8s {
  int16x8_t v[2];
};
constexpr int kInt8Step = 16;
inline vi zero_i() { return {{vdupq_n_s32(0), vdupq_n_s32(0)}}; }
inline i8s load_i8(const int8_t* p) {
  const int8x16_t v = vld1q_s8(p);
  return {{vmovl_s8(vget_low_s8(v)), vmovl_high_s8(v)}};
}
inline vi dot_i16(vi acc, i8s w, const int16_t* x) {
  for (int h = 0; h < 2; h++) {
    const int16x8_t a = vld1q_s16(x + 8 * h);
    acc.v[0] = vmlal_s16(acc.v[0], vget_low_s16(w.v[h]), vget_low_s16(a));
    acc.v[1] = vmlal_high_s16(acc.v[1], w.v[h], a);
  }
  return acc;
}
inline vf to_float(vi v) { return vcvtq_f32_s32(v.v[0]) + vcvtq_f32_s32(v.v[1]); }
inline vf widen_i8(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  const int16x8_t w = vmovl_s8(vcreate_s8(static_cast<uint32_t>(word)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(w)));
}
