#include <webgpu/webgpu_cpp.h>

int main() { return wgpu::CreateInstance(nullptr) ? 0 : 1; }
