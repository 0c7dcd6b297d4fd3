#include "nibble/base/error.h"
#include "tests/support/gpu_test.h"

namespace nibble::kernel_test {
namespace {

TEST(Kernel, UnknownFileIsNamed) {
  try {
    kernel(test::device(), "no_such_kernel");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("no_such_kernel"), std::string::npos);
  }
}

TEST(Operand, UploadedRowsAreScaledToTheTopOfTheRange) {
  const std::vector<float> values = {1e6f, -3.0f, 1e-9f, 2e-9f, 0.0f, 0.0f};
  const auto operand = test::upload_operand(values, 3, 2, ProductPath::f16);
  const auto data = test::download(operand.data);
  EXPECT_GE(data[0], 0x1p13f);
  EXPECT_LT(data[0], 0x1p14f);
  EXPECT_GE(data[3], 0x1p13f);
  EXPECT_LT(data[3], 0x1p14f);
  const auto back = test::download(operand);
  EXPECT_NEAR(back[0], 1e6f, 1e6f * 0x1p-11f);
  EXPECT_NEAR(back[2], 1e-9f, 1e-9f * 0x1p-11f);
  EXPECT_EQ(test::download(operand.scale)[2], 0.0f);
}

}  // namespace
}  // namespace nibble::kernel_test
