// Runs the kernel on arrays from files.
//
//     kernel_driver CASES
//
// Each line of CASES is `TYPE LEVELS THRESHOLDS X Y OFFSET MODE`: TYPE is fp32, fp16 or bf16, the
// files are raw, OFFSET moves both device buffers by that many values off their alignment, MODE is
// `stream`, `inplace`, `graph` (captured and replayed) or `lookup` (by that method). Y is written
// with the poisoned values around it, kGuard before and after, so that stray writes are seen.
// Exits with 3 where the GPU does not support the method.

#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <sstream>

#include "cuda_check.h"
#include "files.h"
#include "htdq/codebook.h"
#include "htdq/kernel.h"

namespace {

constexpr size_t kGuard = 64;
constexpr int kPoison = 0xA5;
constexpr int kUnsupported = 3;

struct Case {
    std::string type, levels, thresholds, x, y, mode;
    size_t offset;
};

qvd::HtdqTable read_table(Case const& c) {
    auto const levels = files::read<float>(c.levels);
    auto const thresholds = files::read<float>(c.thresholds);
    qvd::HtdqCodebook codebook;
    std::string error;
    if (!qvd::make_codebook({levels.data(), static_cast<int64_t>(levels.size())},
                            {thresholds.data(), static_cast<int64_t>(thresholds.size())}, codebook,
                            error)) {
        throw std::runtime_error(error);
    }
    return codebook.table;
}

void replay_captured(qvd::HtdqTable const& table, qvd::HtdqType type, void const* x, void* y,
                     int64_t count, cudaStream_t stream) {
    cudaGraph_t graph{};
    cudaGraphExec_t executable{};
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin capture");
    check(qvd::htdq_launch(table, type, x, y, count, stream), "htdq_launch");
    check(cudaStreamEndCapture(stream, &graph), "end capture");
    check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
    check(cudaGraphLaunch(executable, stream), "replay");
    check(cudaStreamSynchronize(stream), "replay");
    check(cudaGraphExecDestroy(executable), "destroy");
    check(cudaGraphDestroy(graph), "destroy");
}

// False where the GPU does not support the case.
bool run(Case const& c, cudaStream_t stream) {
    qvd::HtdqType const type = c.type == "fp32"   ? qvd::HtdqType::kFloat32
                               : c.type == "fp16" ? qvd::HtdqType::kFloat16
                                                  : qvd::HtdqType::kBFloat16;
    size_t const size = c.type == "fp32" ? 4 : 2;
    auto const x = files::read<char>(c.x);
    size_t const guard = (kGuard + c.offset) * size;
    std::vector<char> y(x.size() + 2 * kGuard * size);

    DeviceBuffer const device_x(guard + x.size() + kGuard * size);
    DeviceBuffer const device_y(guard + x.size() + kGuard * size);
    char* const from = device_x.data() + guard;
    char* const to = (c.mode == "inplace" ? device_x : device_y).data() + guard;
    check(cudaMemset(device_x.data(), kPoison, guard + x.size() + kGuard * size), "poison");
    check(cudaMemset(device_y.data(), kPoison, guard + x.size() + kGuard * size), "poison");
    check(cudaMemcpy(from, x.data(), x.size(), cudaMemcpyHostToDevice), "copy in");
    check(cudaDeviceSynchronize(), "copy in");

    auto const count = static_cast<int64_t>(x.size() / size);
    qvd::HtdqTable const table = read_table(c);
    if (c.mode == "graph") {
        replay_captured(table, type, from, to, count, stream);
    } else {
        qvd::HtdqMethod const method =
            c.mode == "lookup" ? qvd::HtdqMethod::kLookup : qvd::HtdqMethod::kFastest;
        cudaError_t const error = qvd::htdq_launch(table, type, from, to, count, stream, method);
        if (error == cudaErrorNotSupported) {
            return false;
        }
        check(error, "htdq_launch");
    }
    check(cudaStreamSynchronize(stream), "kernel");
    check(cudaMemcpy(y.data(), to - kGuard * size, y.size(), cudaMemcpyDeviceToHost), "copy out");
    files::write(c.y, y);
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "usage: %s CASES\n", argv[0]);
        return 2;
    }
    try {
        std::ifstream cases(argv[1]);
        cudaStream_t stream{};
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
        std::string line;
        while (std::getline(cases, line)) {
            Case c;
            std::istringstream(line) >> c.type >> c.levels >> c.thresholds >> c.x >> c.y >>
                c.offset >> c.mode;
            if (!run(c, stream)) {
                return kUnsupported;
            }
        }
        check(cudaStreamDestroy(stream), "stream");
    } catch (std::exception const& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
