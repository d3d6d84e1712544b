#pragma once

namespace youtu {

// Small problems through the chosen leaves, against double precision. False: this build does not
// compute right on this machine (a compiler's or an emulator's fault) and must not be used.
bool self_test();

}  // namespace youtu
