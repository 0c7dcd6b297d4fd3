#include "nibble/cli/residency_flags.h"

namespace nibble::cli {

void ResidencyFlags::add_to(CLI::App& verb, Cached cached) {
  const bool offered = cached == Cached::offered, planned = name == "auto";
  std::vector<std::string> names = {"resident", "streamed"};
  if (offered) names.insert(names.begin() + 1, "cached");
  if (planned) names.insert(names.begin(), "auto");
  verb.add_option("--residency", name,
                  std::string("Weights of the layers. resident: NF4 in GPU memory") + (offered ? "; cached: decoded once and kept there too" : "") +
                      "; streamed: NF4 in host memory,\nsent to the GPU layer by layer, one on its way while another computes" +
                      (planned ? "; auto: resident, and as many layers streamed as memory needs" : ""))
      ->check(CLI::IsMember(names))
      ->capture_default_str();
  verb.add_option("--stream-layers", layers, "Stream so many layers alone, evenly spread, and keep the others as --residency says, or resident")
      ->check(CLI::Range(0u, 100000u));
  verb.add_option("--stream-memory", memory,
                  "How the GPU reads streamed layers. staged: copies from the driver's host memory; mapped: copies from memory of the\n"
                  "process; carried: products move it from there while they multiply; direct: kernels read memory of the process, and\n"
                  "nothing is copied; auto: staged, but carried where the driver would take GPU memory to stage")
      ->check(CLI::IsMember({"auto", "staged", "mapped", "carried", "direct"}))->capture_default_str();
  verb.add_option("--embedding-memory", embedding,
                  "Where the embedding is kept: device, or host, of which the GPU reads a batch's rows. A model that ties it to\n"
                  "the head needs it on the device")
      ->check(CLI::IsMember({"device", "host"}))->capture_default_str();
  verb.add_option("--stream-slots", slots, "Streamed layers that have room in GPU memory at a time")
      ->check(CLI::Range(2u, 1000u))->capture_default_str();
}

Residency ResidencyFlags::residency() const {
  return name == "cached" ? Residency::cached : name == "streamed" ? Residency::streamed : Residency::resident;
}

std::optional<Residency> ResidencyFlags::choice() const {
  if (name == "auto") return {};
  return residency();
}

StreamOptions ResidencyFlags::stream() const {
  return {.memory = gpu::host_memory_named(memory), .embedding = embedding == "host", .slots = slots};
}

}  // namespace nibble::cli
