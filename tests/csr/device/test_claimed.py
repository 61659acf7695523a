"""The claimed GPU refuses what CUDA refuses, allows what CUDA allows, and computes what the CPU computes."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.csr.device.claimed import Accelerator, ClaimedTensor, MixedDevicesError

GPU = torch.device("cuda", 0)


def on_gpu(values: torch.Tensor) -> torch.Tensor:
    return values.to(GPU)


def host(value: torch.Tensor) -> list:
    return value.detach().cpu().tolist()


REFUSED = {
    "add": lambda x, y: x + y,
    "in place": lambda x, y: y.add_(x),
    "scalar in place": lambda x, y: torch.tensor(1.0).add_(x),
    "GPU scalar with a CPU tensor": lambda x, y: x[0] * y,
    "matmul": lambda x, y: x[None] @ y[:, None],
    "cat": lambda x, y: torch.cat([x, y]),
    "stack of scalars": lambda x, y: torch.stack([x[0], y[0]]),
    "where": lambda x, y: torch.where(y > 0, x, x),
    "linear": lambda x, y: nn.Linear(3, 2)(x),
    "linear of the other": lambda x, y: nn.Linear(3, 2).to(GPU)(y),
    "loss": lambda x, y: F.cross_entropy(x[None], torch.tensor([1])),
    "gather": lambda x, y: x.gather(0, torch.tensor([0])),
    "index_select": lambda x, y: x.index_select(0, torch.tensor([0])),
    "CPU tensor, GPU index": lambda x, y: y[torch.tensor([0, 2], device=GPU)],
    "CPU tensor, GPU mask": lambda x, y: y[x > 0],
    "CPU values into the GPU": lambda x, y: x.__setitem__(torch.tensor([0, 1, 2], device=GPU), y),
    "GPU values into the CPU": lambda x, y: y.__setitem__(torch.tensor([0, 1, 2]), x),
    "mask of the other": lambda x, y: x.masked_fill(y > 0, 0.0),
    "data of the other": lambda x, y: setattr(x, "data", y),
    "generator": lambda x, y: torch.rand(2, device=GPU, generator=torch.Generator()),
    "generator in place": lambda x, y: x.normal_(generator=torch.Generator()),
    "another GPU": lambda x, y: y.to("cuda:1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mixed_devices_are_refused(name, accelerator):
    x, y = on_gpu(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([1.0, -2.0, 3.0])
    with pytest.raises(MixedDevicesError):
        REFUSED[name](x, y)


def test_a_refusal_names_the_operation_and_the_devices(accelerator):
    with pytest.raises(MixedDevicesError, match=r"aten\.mul\.Tensor.*same device.*cuda:0 and cpu \(of shape \(2,\)\)"):
        torch.ones(2, device=GPU) * torch.ones(2)


@pytest.mark.parametrize("read", [lambda x: x.numpy(), np.asarray, lambda x: np.arange(3)[x]])
def test_numpy_is_refused_as_cuda_refuses_it(read, accelerator):
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        read(torch.arange(3, device=GPU))


ALLOWED = {
    "CPU scalar": lambda x: x + torch.tensor(2.0),
    "CPU scalar first": lambda x: torch.tensor(2.0) - x,
    "CPU scalar in where": lambda x: torch.where(x > 1, x, torch.tensor(0.0)),
    "CPU scalar as filling": lambda x: x.masked_fill(x > 1, torch.tensor(0.0)),
    "CPU index": lambda x: x[torch.tensor([2, 0])],
    "CPU mask": lambda x: x[torch.tensor([True, False, True])],
    "numpy index": lambda x: x[np.array([1, 2])],
    "list": lambda x: x[[0, 2]],
    "set by CPU index": lambda x: x.clone().index_put_((torch.tensor([1]),), torch.tensor(7.0)),
    "copy from the CPU": lambda x: x.clone().copy_(torch.zeros(3)),
    "shape in place": lambda x: x.clone().unsqueeze_(0).squeeze_(0).mul_(2),
    "view in place": lambda x: _set(x.clone(), slice(1, 3), 5.0),
    "quantile": lambda x: torch.quantile(x, 0.3),
    "sorted": lambda x: x.sort(descending=True).values,
}


def _set(x: torch.Tensor, where: slice, value: float) -> torch.Tensor:
    x[where] = value
    return x


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows_gives_what_the_cpu_gives(name, accelerator):
    values = torch.tensor([1.0, 2.0, 3.0])
    found = ALLOWED[name](on_gpu(values))
    assert isinstance(found, ClaimedTensor) and found.device == GPU and found.is_cuda and not found.is_cpu
    assert host(found) == ALLOWED[name](values).tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda where: torch.zeros(2, device=where),
        lambda where: torch.full((2,), 1.5, device=where),
        lambda where: torch.arange(3, device=where),
        lambda where: torch.tensor([1, 2], device=where),
        lambda where: torch.as_tensor(np.ones(2), device=where),
        lambda where: torch.rand(2, device=where),
        lambda where: torch.eye(2, 3, device=where),
        lambda where: torch.zeros(2, device=where).new_full((1,), 3),
        lambda where: torch.rand_like(torch.zeros(2, device=where)),
        lambda where: torch.zeros_like(torch.zeros(2), device=where),
        lambda where: torch.zeros(2).to(where),
        lambda where: torch.zeros(2, device=where).to(torch.float64),
    ],
)
@pytest.mark.parametrize("where", [GPU, "cuda", "cpu"])
def test_a_tensor_is_made_where_it_is_asked_for(make, where, accelerator):
    made = make(where)
    assert made.device.type == torch.device(where).type == ("cuda" if isinstance(made, ClaimedTensor) else "cpu")


def test_moving_there_and_back(accelerator):
    x = torch.rand(3, 4)
    there = x.to(GPU)
    assert there.to("cuda") is there and there.cuda() is there
    assert type(there.cpu()) is torch.Tensor and torch.equal(there.cpu(), x)
    assert type(there.to("cpu")) is torch.Tensor


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def test_a_module_moves_with_its_buffers_and_keeps_its_parameters(accelerator):
    model = network()
    before = list(model.parameters())
    model.to(GPU).to(memory_format=torch.channels_last)
    after = list(model.parameters())
    assert all(old is new and isinstance(new, nn.Parameter) for old, new in zip(before, after, strict=True))
    assert all(isinstance(tensor, ClaimedTensor) for tensor in [*model.parameters(), *model.buffers()])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.zero_()
    assert model[0].weight.abs().sum() > 0 and isinstance(twin[0].weight, nn.Parameter)
    model.cpu()
    assert not any(isinstance(tensor, ClaimedTensor) for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("fused", [True, False])
def test_training_gives_the_cpus_weights(fused, accelerator):
    def train(where) -> nn.Module:
        model = network().to(where)
        images, labels = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2
        optimiser = torch.optim.AdamW(model.parameters(), fused=fused)
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(model(images.to(where)), labels.to(where)).backward()
            optimiser.step()
        return model

    for claimed, expected in zip(train(GPU).parameters(), train("cpu").parameters(), strict=True):
        assert torch.equal(claimed.detach().cpu(), expected)


def test_gradients_of_inputs(accelerator):
    x = torch.tensor([1.0, 2.0], device=GPU, requires_grad=True)
    (gradient,) = torch.autograd.grad((x**3).sum(), x)
    assert isinstance(gradient, ClaimedTensor) and host(gradient) == [3.0, 12.0]


def test_autocast_is_for_the_device_that_it_names(accelerator):
    layer, x = nn.Linear(2, 2).to(GPU), torch.ones(1, 2, device=GPU)
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        with torch.autocast("cuda", enabled=False):
            assert layer(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32


def test_float16_is_trained_with_a_gradient_scaler(accelerator):
    model, images = network().to(GPU), torch.rand(8, 1, 4, 4, device=GPU)
    before = model[0].weight.detach().clone()
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", torch.float16):
        answer = model(images)
    scaler.scale(F.cross_entropy(answer.float(), torch.zeros(8, dtype=torch.long, device=GPU))).backward()
    scaler.step(optimiser)
    scaler.update()
    assert scaler.is_enabled() and answer.dtype == torch.float16
    assert not torch.equal(model[0].weight, before) and not accelerator.reads["copy"]


def test_a_saved_state_comes_back_on_the_cpu_and_can_be_loaded_there_and_here(accelerator):
    model, file = network().to(GPU), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, map_location="cpu", weights_only=True)
    for other in (network(), network().to(GPU)):
        other.load_state_dict({name: torch.zeros_like(value) for name, value in state.items()})
        other.load_state_dict(state)
        assert torch.equal(other[0].weight.detach().cpu(), model[0].weight.detach().cpu())


def test_what_is_read_back_is_counted(accelerator):
    x = torch.tensor([1.0, 0.0, 2.0]).to(GPU, non_blocking=True)
    F.one_hot((x > 0).long(), 2)  # whose checks of its values are the CPU's alone
    x[x.argmax()[None]], x[0] + x.to(torch.float64), x.copy_(torch.ones(3), non_blocking=True)
    assert not accelerator.reads and accelerator.operations > 0
    assert float(x.sum()) == x.sum().item() == 3 and bool(x.any()) and f"{x[0]:.1f}" == "1.0"
    assert accelerator.reads == {"number": 4}
    x.cpu(), x.tolist(), torch.zeros(3).copy_(x)
    assert accelerator.reads == {"number": 4, "copy": 3}
    x.nonzero(), x[x > 0], x.unique()
    assert accelerator.reads == {"number": 4, "copy": 3, "shape": 3}


def test_uploads_that_wait_are_counted(accelerator):
    x = torch.ones(3).to(GPU)
    torch.tensor([1.0], device=GPU), x.copy_(torch.zeros(3)), x[torch.tensor([0, 2])], x[[0, 2]]
    x[torch.tensor([0, 2])] = torch.zeros(2, device=GPU)
    torch.zeros(3, device=GPU), x.fill_(2.0), x[1:], x + 2.0  # nothing is sent
    assert accelerator.reads == {"upload": 6}
    assert torch.equal(x.cpu(), torch.full((3,), 2.0))


def test_it_ends_with_its_context():
    with Accelerator():
        x = torch.ones(2, device=GPU)
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    assert not torch.cuda.is_available()
    assert type(torch.ones(2) + 1) is torch.Tensor
    with pytest.raises(RuntimeError, match="outlived"):
        x + 1
