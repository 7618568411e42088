"""Steps of PyTorch: `plain`, and Opacus by `hooks` (gradients of each example), `ew` (expanded weights) and `ghost`."""

from worker import pin_to_one_core, serve

pin_to_one_core()

import opacus  # noqa: E402
import torch  # noqa: E402
import workloads  # noqa: E402
from opacus.grad_sample import wrap_model  # noqa: E402
from opacus.optimizers import get_optimizer_class  # noqa: E402
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping  # noqa: E402

MAX_GRAD_NORM = 1.0
NOISE_MULTIPLIER = 1.0


def _same_padding(size, kernel_size, strides):
    """Zeros before and after, as TensorFlow puts them."""
    total = max((-(-size // strides) - 1) * strides + kernel_size - size, 0)
    return total // 2, total - total // 2


def build(workload):
    """Channels first; biasless, as the other workers' networks."""
    *image, channels = workload.input_shape
    x = torch.zeros(1, channels, *image)
    modules = []
    for layer in workload.layers:
        match layer:
            case workloads.Conv():
                if layer.padding == "same":
                    before, after = _same_padding(x.shape[-1], layer.kernel_size, layer.strides)
                    modules.append(torch.nn.ZeroPad2d((before, after, before, after)))
                modules.append(torch.nn.Conv2d(x.shape[1], layer.filters, layer.kernel_size, layer.strides, bias=False))
            case workloads.Activation():
                modules.append(torch.nn.ReLU())
            case workloads.Pool():
                modules.append(torch.nn.MaxPool2d(layer.size, layer.strides))
            case workloads.Flatten():
                modules.append(torch.nn.Flatten())
            case workloads.Dense():
                modules.append(torch.nn.Linear(x.shape[1], layer.units, bias=False))
        x = torch.nn.Sequential(*modules)(torch.zeros(1, channels, *image))
    return torch.nn.Sequential(*modules)


def make_step(arm, workload, batch_size):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    *image, channels = workload.input_shape
    x = torch.rand(batch_size, channels, *image)
    y = torch.randint(0, workload.num_classes, (batch_size,))
    model = build(workload)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    criterion = torch.nn.CrossEntropyLoss()
    if arm != "plain":
        ghost = {"max_grad_norm": MAX_GRAD_NORM} if arm == "ghost" else {}
        model = wrap_model(model, grad_sample_mode=arm, batch_first=True, loss_reduction="mean", **ghost)
        optimizer = get_optimizer_class(clipping="flat", distributed=False, grad_sample_mode=arm)(
            optimizer=optimizer,
            noise_multiplier=NOISE_MULTIPLIER,
            max_grad_norm=MAX_GRAD_NORM,
            expected_batch_size=batch_size,
        )
        if arm == "ghost":
            criterion = DPLossFastGradientClipping(model, optimizer, criterion, loss_reduction="mean")

    def step():
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    return step, {"torch": torch.__version__, "opacus": opacus.__version__}


if __name__ == "__main__":
    serve(make_step)
