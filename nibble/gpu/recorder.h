#pragma once

#include "nibble/gpu/device.h"

#include <cstring>
#include <initializer_list>
#include <memory>
#include <span>
#include <type_traits>

namespace nibble::gpu {

enum class Access { read, write, read_write };

// A tensor as a kernel sees it. `write` and `read_write` both bind `var<storage, read_write>`; `write` promises that the
// kernel does not read what was there.
struct Binding {
  Tensor tensor;
  Access access;
};

inline Binding read(Tensor tensor) { return {std::move(tensor), Access::read}; }
inline Binding write(Tensor tensor) { return {std::move(tensor), Access::write}; }
inline Binding read_write(Tensor tensor) { return {std::move(tensor), Access::read_write}; }

// Workgroups of a dispatch.
struct Grid {
  std::uint32_t x = 1, y = 1, z = 1;
};

// A grid of at least `count` workgroups for kernels that number them by `id.y * grid.x + id.x` (lib/grid.wgsl) and ignore
// those beyond their count: x alone is limited to 65,535.
Grid linear_grid(const Device& device, std::uint64_t count);

// What a dispatch does at least, for the profile and for cutting long work into several submissions.
struct Work {
  double bytes = 0;
  double flops = 0;
};

// How long a recorder's submissions are. The first is short in either case, so that the GPU starts at once.
enum class Pace {
  growing,  // each may be twice as long as the last: submitting costs least
  even,     // all are short: for work that takes the GPU no longer than recording it takes, and must not wait for all of that
  held,     // nothing is submitted before submit(): for work that is known in advance, of at most a few thousand dispatches
};

struct RecorderState;

// Collects dispatches and copies, and submits them in batches, in order. One step is one recorder's work.
class Recorder {
 public:
  explicit Recorder(Device& device, Pace pace = Pace::growing);
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  Device& device() { return device_; }

  // `params` is the kernel's uniform struct, of 4-byte scalars. A tensor bound for writing must not overlap another
  // binding of the same dispatch.
  template <typename Params>
  void dispatch(const Kernel& kernel, std::initializer_list<Binding> bindings, const Params& params, Grid grid,
                Work work = {}) {
    static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) % 4 == 0 && sizeof(Params) <= 256);
    dispatch_bytes(kernel, std::span(bindings.begin(), bindings.size()),
                   std::as_bytes(std::span<const Params, 1>(&params, 1)), grid, work);
  }
  void dispatch_bytes(const Kernel& kernel, std::span<const Binding> bindings, std::span<const std::byte> params,
                      Grid grid, Work work);

  // Begins to compile a kernel that will be dispatched with such bindings and params later.
  void prepare(const Kernel& kernel, std::span<const Binding> bindings, std::size_t params_bytes);

  // Bytes must be a multiple of 4.
  void copy(const Tensor& from, const Tensor& to);
  void clear(const Tensor& tensor);

  // Hands over what has been recorded; also done by the destructor, which swallows errors (Device::check finds them), but for
  // a held recorder, which forgets it.
  void submit();

  // Of a held recorder, once before submit(): does what can be done of it now.
  void encode();

 private:
  Device& device_;
  void submit_encoded();

  std::unique_ptr<RecorderState> state_;
};

// Rows of a tensor that one dispatch may bind: [begin, end).
struct RowRange {
  std::uint32_t begin, end;
};

// Cuts `rows` so that each tensor's slice fits into one binding and begins where bindings may begin. `row_bytes` are those
// of each tensor; `multiple` is a further requirement on where slices begin. Throws where one such step is too large.
std::vector<RowRange> binding_slices(const Device& device, std::uint32_t rows, std::initializer_list<std::uint64_t> row_bytes,
                                     std::uint32_t multiple = 1);

}  // namespace nibble::gpu
