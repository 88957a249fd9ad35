"""Adding gradients over the processes that hold the same weights: replicas, and copies of tied weights.

All gradients of a stage start at REDUCE_GRAD and are waited for at NORM. They travel in messages of some parameters
each: the first is under way while the next is laid out, and that takes the memory which the gradients of the first had,
where one message of all would need as much again. A weight that stages of several ranks share is added over all its
copies, those of other replicas included, in a message of its own: so it needs no second reduction after the first, and
REDUCE_GRAD leaves it out.

Under ZeRO 1 (Rajbhandari et al. 2020, arXiv:1910.02054, section 5.1) each message ends as a share for each replica: it
updates that part of the message's parameters, with moments for it alone, and parameters are gathered after STEP. Shares
are cut from the parameters laid end to end, so they are equal whatever sizes parameters have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evenflow.cost import MESSAGE_BYTES
from evenflow.program import Program, ReduceGrad, ReduceTied, Reduction
from evenflow.runtime.lost import naming_the_lost
from evenflow.runtime.mesh import Mesh
from evenflow.runtime.parts import is_sharded, like, local, plain_part
from evenflow.runtime.precision import sum_gradients_in_fp32

_FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter lies in its bucket, and the part of it that is this replica's to update."""

    name: str
    parameter: nn.Parameter
    begin: int
    end: int
    piece: nn.Parameter | None  # a view of the parameter; None where all replicas update all of it
    first: int  # of the piece, in the bucket


class Bucket:
    """Parameters whose gradients are added together, in one message.

    Args:
        parameters: by name.
        group: over which they are added.
        shares: the replicas that share out the update; None where each does all of it.
        scatters: whether the sum may end as shares; one over more than the replicas may not.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        group: dist.ProcessGroup,
        shares: dist.ProcessGroup | None,
        scatters: bool,
    ) -> None:
        self._group = group
        self._shares = shares
        self._scatters = scatters and shares is not None
        self._works: list[dist.Work] = []
        self._sum: Tensor | None = None  # what the message ends as
        self._flags: Tensor | None = None
        size = sum(local(own).numel() for own in parameters.values())
        replicas = 1 if shares is None else dist.get_world_size(shares)
        self._share = -(-size // replicas)
        self._size = self._share * replicas
        self._own = 0 if shares is None else dist.get_rank(shares) * self._share
        self._places = list(self._place(parameters))

    def _place(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[_Place]:
        begin = 0
        for name, parameter in parameters.items():
            end = begin + local(parameter).numel()
            first, last = max(begin, self._own), min(end, self._own + self._share)
            piece = None
            if self._shares is not None and first < last:
                flat = local(parameter).detach().view(-1)[first - begin : last - begin]
                # A piece of a matrix is a matrix of one column: which parameters decay goes by their dimensions.
                piece = nn.Parameter(flat.unsqueeze(1) if parameter.ndim >= 2 else flat)
                sum_gradients_in_fp32([piece])
            yield _Place(name, parameter, begin, end, piece, first)
            begin = end

    @property
    def updated(self) -> dict[str, nn.Parameter]:
        """What this process updates: whole parameters, or pieces, named by where they begin (`NAME@7`)."""
        if self._shares is None:
            return {place.name: place.parameter for place in self._places}
        return {
            f"{place.name}@{place.first - place.begin}": place.piece
            for place in self._places
            if place.piece is not None
        }

    @property
    def dtype(self) -> torch.dtype:
        """A type that holds all of its parameters as they are: some models keep a few in fp32 beside others in bf16."""
        kept = {local(place.parameter).dtype for place in self._places}
        return kept.pop() if len(kept) == 1 else torch.float32

    def start(self) -> None:
        """Start adding the gradients, which move into the message."""
        there = torch.tensor([float(place.parameter.grad is not None) for place in self._places])
        with naming_the_lost():
            message = self._lay_out()
            if self._scatters:
                self._sum = message.new_empty(self._share)
                work = dist.reduce_scatter_single(self._sum, message, group=self._group, async_op=True)
            else:
                self._sum = message
                work = dist.all_reduce(message, group=self._group, async_op=True)
            self._works = [_started(work), _started(dist.all_reduce(there, group=self._group, async_op=True))]
        self._flags = there

    def _lay_out(self) -> Tensor:
        """Move the gradients into a tensor in host memory, as gloo carries it."""
        message = torch.empty(self._size, dtype=torch.float32, device=self._device)  # as gradients are
        for place in self._places:
            part, gradient = message[place.begin : place.end], place.parameter.grad
            if gradient is None:
                part.zero_()
            else:
                part.copy_(local(gradient).reshape(-1))
                place.parameter.grad = None
        message[self._places[-1].end :].zero_()
        return message.cpu()

    @property
    def _device(self) -> torch.device:
        return local(self._places[0].parameter).device

    def finish(self) -> None:
        """Wait for the sum and give each parameter (or piece) its gradient; one that nobody made stays None."""
        with naming_the_lost():
            while self._works:
                self._works.pop().wait()
        assert self._flags is not None, "started before it is finished"
        assert self._sum is not None, "started before it is finished"
        made, found = self._flags.tolist(), self._sum.to(self._device)
        self._sum = self._flags = None
        begins = self._own if self._scatters else 0
        for place, is_made in zip(self._places, made, strict=True):
            if is_made and self._shares is None:
                place.parameter.grad = like(found[place.begin : place.end], place.parameter)
            elif is_made and place.piece is not None:
                first = place.first - begins
                place.piece.grad = found[first : first + place.piece.numel()].view_as(place.piece)

    def spread(
        self, pieces: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
    ) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Gather from all replicas what each has for its pieces.

        Args:
            pieces: this replica's, by the names of `updated`.
            dtype: in which they travel, the same on every replica.

        Yields:
            Each parameter's name, the parameter, and the whole that the pieces make, flat.
        """
        if self._shares is None:
            return
        own = torch.zeros(self._share, dtype=dtype)
        for place in self._places:
            name = f"{place.name}@{place.first - place.begin}"
            if place.piece is not None and name in pieces:
                first = place.first - self._own
                own[first : first + place.piece.numel()].copy_(pieces[name].reshape(-1))
        whole = own.new_empty(self._size)
        with naming_the_lost():
            dist.all_gather_single(whole, own, group=self._shares)
        for place in self._places:
            yield place.name, place.parameter, whole[place.begin : place.end]


class Reductions:
    """All that one process reduces in a step.

    Args:
        program: the program that runs.
        mesh: where this process is.
        stages: the parameters of its stages by name, by stage.
        tied: the names of the weights that tied stages share.
        shares: whether replicas share out the optimizer's state (ZeRO 1).
    """

    def __init__(
        self,
        program: Program,
        mesh: Mesh,
        stages: Mapping[int, Mapping[str, nn.Parameter]],
        tied: Iterable[str] = (),
        shares: bool = False,
    ) -> None:
        self._mesh = mesh
        self._parts: dict[str, nn.Parameter] = {}
        self._starts: dict[Reduction, list[Bucket]] = {}
        self._parameters = {name: own for parameters in stages.values() for name, own in parameters.items()}
        shared, rank = frozenset(tied), mesh.at.pp
        sharing = mesh.dp if shares else None
        apart: set[str] = set()
        self.elsewhere: frozenset[str] = frozenset()
        for number, group in enumerate(program.tied):
            ranks = {program.stage_rank[stage] for stage in group}
            mine = {stage for stage in group if program.stage_rank[stage] == rank}
            copies = mesh.tied[number]
            if len(ranks) == 1 or not mine or copies is None:
                continue
            weights = {name: own for stage in mine for name, own in stages[stage].items() if name in shared}
            apart |= weights.keys()
            if rank != program.stage_rank[min(group)]:
                self.elsewhere |= weights.keys()
            reductions = [own for own in program.ranks[rank] if isinstance(own, ReduceTied) and own.stage in mine]
            if reductions and weights:
                self._starts[reductions[-1]] = [Bucket(weights, copies, sharing, scatters=False)]
        for stage, parameters in stages.items() if mesh.dp is not None else ():
            own = {
                name: parameter
                for name, parameter in parameters.items()
                if name not in apart and (name not in shared or program.reducer(stage) == stage)
            }
            if own:
                assert mesh.dp is not None
                self._starts[ReduceGrad(stage)] = [
                    Bucket(some, mesh.dp, sharing, scatters=True) for some in in_messages(own)
                ]

    @property
    def _buckets(self) -> Iterator[Bucket]:
        return chain.from_iterable(self._starts.values())

    @property
    def updated(self) -> dict[str, nn.Parameter]:
        """What this process updates: parameters (plain parts of those that are shared out), or under ZeRO 1 pieces.

        The optimizer's kernels take many parameters at once, all of one kind.
        """
        reduced = list(self._buckets)
        names = {place.name for bucket in reduced for place in bucket._places}
        whole = {name: own for name, own in self._parameters.items() if name not in names}
        for bucket in reduced:
            whole |= bucket.updated
        return {name: self._parts.setdefault(name, plain_part(own)) for name, own in whole.items()}

    @property
    def uncounted(self) -> frozenset[str]:
        """What this process updates, but another counts in the norm: each gradient is counted once in the job."""
        at = self._mesh.at
        return frozenset(
            key
            for key, own in self.updated.items()
            if (name := key.partition("@")[0]) in self.elsewhere
            or (at.dp > 0 and "@" not in key)
            or (at.tp > 0 and not is_sharded(self._parameters[name]))
        )

    def start(self, action: Reduction) -> None:
        """Start what an action stands for; of a rank's stages that share a weight the last one's starts it."""
        for bucket in self._starts.get(action, ()):
            bucket.start()

    def finish(self) -> None:
        """Wait for all sums."""
        for bucket in self._buckets:
            bucket.finish()
        for name, part in self._parts.items():
            parameter = self._parameters.get(name)
            if parameter is not None and parameter is not part and parameter.grad is not None:
                part.grad, parameter.grad = local(parameter.grad), None

    @torch.no_grad()
    def spread(self) -> None:
        """After an update: give every replica the parameters that others have updated."""
        for bucket in self._buckets:
            for _, parameter, whole in bucket.spread(bucket.updated, bucket.dtype):
                local(parameter).view(-1).copy_(whole)

    def gathered(self, state: Mapping[str, Tensor], kinds: Iterable[str]) -> dict[str, Tensor]:
        """The optimizer's state as `KIND/NAME`, whole parameters' again; all replicas have to ask for it at once."""
        found = {key: own for key, own in state.items() if "@" not in key}
        for bucket in self._buckets:
            for kind in kinds:
                pieces = {key.partition("/")[2]: own for key, own in state.items() if key.startswith(f"{kind}/")}
                for name, parameter, whole in bucket.spread(pieces):
                    if self._mesh.at.dp == 0:
                        found[f"{kind}/{name}"] = whole.view_as(local(parameter))
        return found


def in_messages(parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, nn.Parameter]]:
    """Neighbouring parameters, whose gradients make a message of `MESSAGE_BYTES` at most unless one alone is more."""
    together: dict[str, nn.Parameter] = {}
    size = 0
    for name, parameter in parameters.items():
        own = local(parameter).numel() * _FP32_BYTES
        if together and size + own > MESSAGE_BYTES:
            yield together
            together, size = {}, 0
        together[name] = parameter
        size += own
    yield together


def _started(work: dist.Work | None) -> dist.Work:
    assert work is not None, "this process is in the group"
    return work
