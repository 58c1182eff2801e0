import subprocess
import sys

import pytest

from serving.bundle.session import CPU, CUDA
from serving.bundle.timing import name_machine, read_peak_memory, time_variant
from serving.errors import BundleError
from tests.unit.serving.tiny_bundle import IMAGE_SIZE, write_model


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("timing") / "model.onnx"
    write_model(path)
    return path


@pytest.fixture(scope="module")
def timing(file):
    return time_variant(file, CPU, IMAGE_SIZE, batch_sizes=(8, 1), seconds_per_batch=0.05)


def test_each_batch_size_is_timed(timing):
    assert [batch.batch_size for batch in timing.batches] == [1, 8]
    for batch in timing.batches:
        assert batch.runs >= 5
        assert 0 < batch.median_ms <= batch.p99_ms
        assert batch.pictures_per_s == pytest.approx(1000 * batch.batch_size / batch.median_ms)
    assert (timing.provider, timing.threads > 0, timing.machine != "") == (CPU, True, True)


def test_the_memory_is_not_that_of_the_process_that_asks(file, timing):
    ballast = bytearray(b"x") * 400_000_000
    again = time_variant(file, CPU, IMAGE_SIZE, batch_sizes=(1,), seconds_per_batch=0.01)
    assert read_peak_memory() > len(ballast)
    assert 20_000_000 < again.peak_memory_bytes < 300_000_000
    assert again.peak_memory_bytes == pytest.approx(timing.peak_memory_bytes, rel=0.3)


def test_a_file_that_is_no_model_is_refused_with_the_reason(tmp_path):
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"model\.onnx cannot be timed on CPUExecutionProvider: .*INVALID_PROTOBUF"):
        time_variant(broken, CPU, IMAGE_SIZE)


def test_the_machine_is_named_by_its_system(tmp_path):
    cpu_file = tmp_path / "cpuinfo"
    cpu_file.write_text("processor\t: 0\nmodel name\t: AMD EPYC 9555: 64-Core\nmodel name\t: another\n")
    gpu_folder = tmp_path / "gpus"
    (gpu_folder / "0000:01:00.0").mkdir(parents=True)
    (gpu_folder / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H100\nIRQ:   42\n")
    assert name_machine(CPU, cpu_file, gpu_folder) == "AMD EPYC 9555: 64-Core"
    assert name_machine(CUDA, cpu_file, gpu_folder) == "NVIDIA H100"
    assert name_machine(CUDA, cpu_file, tmp_path / "none") == name_machine(CPU, tmp_path / "none") == "unknown"


def test_what_measures_loads_no_training_code():
    unwanted = ("torch", "model_code", "scipy")
    program = f"import serving.bundle.timing, sys; print([name for name in {unwanted} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
