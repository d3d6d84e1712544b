// The leaves of a table, in the order of struct Isa.
quantize_int8, quantize_int16, int4_linear, int4_transposed, int8_linear, int8_row, dense_linear,
    dense_transposed, rms_norm, add_rms_norm, layer_norm, silu_mul, gelu_tanh, rotate, store_cache,
    load_cache, attend, merge, scale_row, read,
