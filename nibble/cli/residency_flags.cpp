#include "nibble/cli/residency_flags.h"

namespace nibble::cli {

void ResidencyFlags::add_to(CLI::App& verb, Cached cached) {
  const bool offered = cached == Cached::offered, planned = name == "auto";
  std::vector<std::string> names = {"resident", "streamed"};
  if (offered) names.insert(names.begin() + 1, "cached");
  if (planned) names.insert(names.begin(), "auto");
  verb.add_option("--residency", name,
                  std::string("Weights of the layers. resident: NF4 in GPU memory") + (offered ? "; cached: decoded once and kept there too" : "") +
                      "; streamed: NF4 in host memory, or on a disk,\nsent to the GPU layer by layer, one on its way while another computes" +
                      (planned ? "; auto: resident, and as many layers streamed as memory needs" : ""))
      ->check(CLI::IsMember(names))
      ->capture_default_str();
  verb.add_option("--stream-layers", layers, "Stream so many layers alone, evenly spread, and keep the others as --residency says, or resident")
      ->check(CLI::Range(0u, 100000u));
  verb.add_option("--stream-memory", memory,
                  "How the GPU reads streamed layers. staged: copies from the driver's host memory; mapped: copies from memory of the\n"
                  "process; carried: kernels that multiply or decode move it from there meanwhile; direct: kernels read memory of the process, and\n"
                  "nothing is copied; disk: they lie in a scratch file, of which host memory has three layers at a time; auto: staged, but\n"
                  "carried where the driver would take GPU memory to stage" +
                      std::string(planned ? ", and disk where host memory is too small (--ram-limit)" : ""))
      ->check(CLI::IsMember({"auto", "staged", "mapped", "carried", "direct", "disk"}))->capture_default_str();
  verb.add_option("--stream-dir", folder,
                  "Folder of the scratch file of layers on a disk, which is gone when the program ends. Not given: nibble's cache folder");
  const std::string moved = planned ? "; under --vram-limit it goes to the host where that is what takes the least time" : "";
  verb.add_option("--embedding-memory", embedding,
                  "Where the embedding is kept: device, or host, of which the GPU reads a batch's rows. Of a model that ties it to\n"
                  "the head this is where the head is kept too" + moved)
      ->check(CLI::IsMember({"device", "host"}))->capture_default_str();
  verb.add_option("--head-memory", head,
                  "Where the head is kept: device, or host, of which slices are brought to the GPU in turn, twice a pass" + moved)
      ->check(CLI::IsMember({"device", "host"}))->capture_default_str();
  verb.add_option("--head-bits", head_bits,
                  "How embedding and head are kept: 16 (f16, or f32 where products are), 8 (integers in blocks of 64) or 4 (NF4). Fewer bits\n"
                  "change the results, as quantising the layers does")
      ->check(CLI::IsMember({16u, 8u, 4u}))->capture_default_str();
  verb.add_option("--stream-slots", slots, "Streamed layers that have room in GPU memory at a time")
      ->check(CLI::Range(2u, 1000u))->capture_default_str();
  verb.add_flag("--double-quant", double_quant,
                "Keep the layers' scales in 8 bits too, as bitsandbytes' double quantisation does: 0.37 bits a weight less, on the GPU and\n"
                "on its way there. It changes results a little, but none of a folder that bitsandbytes saved so");
}

Residency ResidencyFlags::residency() const {
  return name == "cached" ? Residency::cached : name == "streamed" ? Residency::streamed : Residency::resident;
}

std::optional<Residency> ResidencyFlags::choice() const {
  if (name == "auto") return {};
  return residency();
}

StreamOptions ResidencyFlags::stream() const {
  return {.memory = gpu::host_memory_named(memory), .embedding = embedding == "host", .slots = slots,
          .head = head == "host", .tables = table_form_of(head_bits), .on_disk = memory == "disk", .folder = folder, .double_quant = double_quant};
}

}  // namespace nibble::cli
