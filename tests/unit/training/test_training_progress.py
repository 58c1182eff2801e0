import subprocess
import sys

from model_code.training import progress
from model_code.training.progress import ProgressPrinter
from model_code.training.results import EpochMetrics
from tests.terminal import show_on_terminal

FOLLOW_TWO_EPOCHS = """
from tests.unit.training.test_training_progress import make_metrics
from model_code.training.progress import ProgressPrinter
printer = ProgressPrinter(2)
printer.on_resume(())
for epoch in (1, 2):
    for step in range(1, 6):
        printer.on_step(epoch, step, 5, 0.5)
    printer.on_epoch_end(make_metrics(epoch))
"""
FIRST_LINE = "  epoch 1/2  loss 1.500 accuracy 0.250  validation 1.250 0.500  1234 img/s  12 s"


def make_metrics(epoch):
    return EpochMetrics(
        epoch=epoch,
        train_loss=1.5,
        train_accuracy=0.25,
        validation_loss=1.25,
        validation_accuracy=0.5,
        validation_macro_f1=0.4,
        learning_rate=0.01,
        seconds=12.3,
        pictures_per_s=1234.4,
    )


def follow(steps=50):
    printer = ProgressPrinter(2)
    for epoch in (1, 2):
        for step in range(1, steps + 1):
            printer.on_step(epoch, step, steps, 0.5)
        printer.on_epoch_end(make_metrics(epoch))


def test_a_log_file_gets_one_plain_line_for_each_epoch(capsys):
    follow()
    out, err = capsys.readouterr()
    assert out == f"{FIRST_LINE}\n{FIRST_LINE.replace('epoch 1', 'epoch 2')}\n"
    assert err == ""


def test_resumed_runs_say_so(capsys):
    printer = ProgressPrinter(9)
    printer.on_resume((make_metrics(1), make_metrics(2)))
    printer.on_resume_epoch(3, 4, 5)
    out, err = capsys.readouterr()
    assert out == "  goes on after epoch 2 of 9\n  goes on in epoch 3 of 9 after step 4 of 5\n"
    assert "\r" not in out + err


def test_long_epochs_print_a_line_now_and_then(capsys, monkeypatch):
    now_s = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOG_LINES", 10.0)
    printer = ProgressPrinter(3)
    for step in range(1, 31):
        now_s[0] += 1
        printer.on_step(1, step, 30, step / 8)
    out, _ = capsys.readouterr()
    assert out.splitlines() == [f"  epoch 1/3  step {step}/30  loss {step / 8:.3f}" for step in (10, 20, 30)]


def test_an_epoch_line_counts_as_a_sign_of_life(capsys, monkeypatch):
    now_s = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_s[0])
    printer = ProgressPrinter(3)
    now_s[0] += progress.SECONDS_BETWEEN_LOG_LINES - 1
    printer.on_epoch_end(make_metrics(1))
    now_s[0] += progress.SECONDS_BETWEEN_LOG_LINES - 1
    printer.on_step(2, 1, 5, 0.5)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_nothing_is_hidden_in_a_pipe():
    done = subprocess.run([sys.executable, "-c", FOLLOW_TWO_EPOCHS], capture_output=True, check=True, text=True)
    assert len(done.stdout.splitlines()) == 2
    assert "\r" not in done.stdout + done.stderr
    assert done.stderr == ""


def test_a_terminal_gets_a_bar_and_keeps_the_epoch_lines():
    text = show_on_terminal(FOLLOW_TWO_EPOCHS, 200)
    assert "\repoch 1/2:" in text
    assert FIRST_LINE in text
    assert text.count("validation 1.250") == 2
