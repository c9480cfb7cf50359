"""The ops of one transformer layer, and of a stage's edges, on one tensor-parallel rank."""

from __future__ import annotations

from dataclasses import dataclass

from layerwise.sim.plan import ops
from layerwise.sim.plan.model import ModelSpec
from layerwise.sim.plan.ops import (
    AllReduceAlgorithm,
    AttentionKernel,
    Buffer,
    BufferKind,
    MatmulKernel,
    Op,
)
from layerwise.sim.plan.workload import Step


@dataclass(frozen=True, kw_only=True)
class LayerBuilder:
    """Builds the ops of one layer for microbatches of `sequences`.

    Shards are Megatron's: query, key, value, gate and up by columns; output and down by rows,
    each followed by an all-reduce over `group` when it has more than one rank.
    `loops_to_itself`: one stage holds the whole model, so its token is already where it is needed.
    """

    model: ModelSpec
    step: Step
    sequences: int
    group: tuple[int, ...]
    attention_kernel: AttentionKernel
    all_reduce: AllReduceAlgorithm
    small_matmul: MatmulKernel = "cublas"
    loops_to_itself: bool = False

    @property
    def shards(self) -> int:
        """Ranks that share this layer."""
        return len(self.group)

    @property
    def tokens(self) -> int:
        """Rows of every activation."""
        return self.sequences * self.step.query_tokens

    @property
    def num_heads(self) -> int:
        """Query heads on this rank."""
        return self.model.num_attention_heads // self.shards

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads on this rank."""
        return self.model.num_key_value_heads // self.shards

    @property
    def qkv_size(self) -> int:
        """Columns of the fused query, key and value projection on this rank."""
        return (self.num_heads + 2 * self.num_key_value_heads) * self.model.head_dim

    @property
    def intermediate_size(self) -> int:
        """Columns of the MLP on this rank."""
        return self.model.intermediate_size // self.shards

    @property
    def stage_input(self) -> Buffer:
        """The residual stream [tokens, hidden]; a receive or an embedding fills it."""
        return self._per_microbatch("act.in", "communication", self.tokens)

    @property
    def stage_output(self) -> Buffer:
        """What the stage hands on [tokens, hidden]."""
        return self._per_microbatch("act.out", "communication", self.tokens)

    @property
    def feedback_in(self) -> Buffer:
        """Where the first stage takes the previous step's token: ids, or its hidden state."""
        return self._token_ids("token.in") if self.model.vocab_size else self.stage_input

    @property
    def feedback_out(self) -> Buffer:
        """What the last stage returns: ids, or the last hidden state [sequences, hidden]."""
        place = "in" if self.loops_to_itself else "out"
        if self.model.vocab_size:
            return self._token_ids(f"token.{place}", self.sequences)
        return self._per_microbatch(f"act.{place}", "communication", self.sequences)

    @property
    def kv(self) -> Buffer:
        """KV cache [2, sequences, kv_heads, capacity, head_dim] of one layer and microbatch."""
        shape = (
            2,
            self.sequences,
            self.num_key_value_heads,
            self.step.kv_capacity_tokens,
            self.model.head_dim,
        )
        dtype = self.model.stored_kv_dtype
        return Buffer("kv", "kv", shape, dtype, per_layer=True, per_microbatch=True)

    def layer(self, *, first_in_stage: bool) -> tuple[Op, ...]:
        """All ops of one layer. Its own residual is added by whoever comes next."""
        hidden = self.model.hidden_size
        normed, down = self._scratch("normed", hidden), self._scratch("mlp.down.out", hidden)
        attended = self._scratch("attn.out.out", hidden)
        delta = None if first_in_stage else down
        return (
            self.norm("attn.norm", delta, normed),
            *self._attention(normed, attended),
            self.norm("mlp.norm", attended, normed),
            *self._mlp(normed, down),
        )

    def norm(self, name: str, delta: Buffer | None, output: Buffer, last: bool = False) -> ops.Norm:
        """RMS norm of the residual stream, adding `delta` into it first."""
        weight = Buffer(
            f"{name}.weight",
            "weight",
            (self.model.hidden_size,),
            self.model.dtype,
            per_layer=not last,
        )
        return ops.Norm(
            name=name,
            source=self.stage_input,
            delta=delta,
            weight=weight,
            output=output,
            sequences=self.sequences,
            query_tokens=self.step.query_tokens,
            hidden_size=self.model.hidden_size,
            epsilon=self.model.rms_norm_eps,
            select_last=last,
        )

    def stage_output_add(self, *, select_last: bool) -> ops.ResidualAdd:
        """The stage's last residual, into what it hands on."""
        return ops.ResidualAdd(
            name="out.residual",
            source=self.stage_input,
            delta=self._scratch("mlp.down.out", self.model.hidden_size),
            output=self.feedback_out if select_last else self.stage_output,
            sequences=self.sequences,
            query_tokens=self.step.query_tokens,
            hidden_size=self.model.hidden_size,
            select_last=select_last,
        )

    def embed(self) -> ops.Embed:
        """Token ids to the residual stream; the table is whole on every rank of the first stage."""
        shape = (self.model.vocab_size, self.model.hidden_size)
        return ops.Embed(
            name="embed",
            token_ids=self._token_ids("token.in"),
            weight=Buffer("embed.weight", "weight", shape, self.model.dtype),
            output=self.stage_input,
            tokens=self.tokens,
            hidden_size=self.model.hidden_size,
        )

    def head(self) -> tuple[Op, ...]:
        """Final norm, vocabulary-sharded LM head, all-gather of logits, greedy sample."""
        hidden, columns = self.model.hidden_size, self.model.vocab_size // self.shards
        normed = self._rows("head.normed", self.sequences, hidden)
        shard = self._rows("head.logits.shard", self.sequences, columns)
        logits = self._rows("head.logits", self.sequences, self.model.vocab_size)
        local = logits if self.shards == 1 else shard
        weight = Buffer("head.matmul.weight", "weight", (columns, hidden), self.model.dtype)
        matmul = ops.Matmul(
            name="head.matmul",
            source=normed,
            weight=weight,
            output=local,
            rows=self.sequences,
            columns=columns,
            inner=hidden,
            kernel=self._matmul_kernel(self.sequences, columns, hidden),
        )
        sample = ops.Sample(
            name="head.sample",
            logits=logits,
            token_ids=self.feedback_out
            if self.step.gives_feedback
            else self._token_ids("token.out", self.sequences),
            sequences=self.sequences,
            vocab_size=self.model.vocab_size,
        )
        norm = self.norm("head.norm", self._scratch("mlp.down.out", hidden), normed, last=True)
        if self.shards == 1:
            return (norm, matmul, sample)
        gather = ops.AllGather(
            name="head.all_gather",
            source=shard,
            output=logits,
            payload_bytes=logits.num_bytes,
            group=self.group,
        )
        return (norm, matmul, gather, sample)

    def _attention(self, normed: Buffer, output: Buffer) -> tuple[Op, ...]:
        model, step = self.model, self.step
        qkv = self._scratch("attn.qkv.out", self.qkv_size)
        heads_out = self._scratch("attn.sdpa.out", self.num_heads * model.head_dim)
        rotary = ops.RotaryWrite(
            name="attn.rope",
            qkv=qkv,
            kv=self.kv,
            sequences=self.sequences,
            query_tokens=step.query_tokens,
            start_tokens=step.context_tokens - step.query_tokens,
            num_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=model.head_dim,
            rope_theta=model.rope_theta,
        )
        attention = ops.Attention(
            name="attn.sdpa",
            qkv=qkv,
            kv=self.kv,
            output=heads_out,
            sequences=self.sequences,
            query_tokens=step.query_tokens,
            context_tokens=step.context_tokens,
            num_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=model.head_dim,
            kernel=self.attention_kernel,
        )
        return (
            self._matmul("attn.qkv", normed, qkv, self.qkv_size, model.hidden_size),
            rotary,
            attention,
            self._matmul(
                "attn.out", heads_out, output, model.hidden_size, self.num_heads * model.head_dim
            ),
            *self._reduce("attn.all_reduce", output),
        )

    def _mlp(self, normed: Buffer, output: Buffer) -> tuple[Op, ...]:
        hidden, width = self.model.hidden_size, self.intermediate_size
        gate_up = self._scratch("mlp.gate_up.out", 2 * width)
        gated = self._scratch("mlp.act.out", width)
        return (
            self._matmul("mlp.gate_up", normed, gate_up, 2 * width, hidden),
            ops.GatedActivation(
                name="mlp.act",
                source=gate_up,
                output=gated,
                tokens=self.tokens,
                intermediate_size=width,
            ),
            self._matmul("mlp.down", gated, output, hidden, width),
            *self._reduce("mlp.all_reduce", output),
        )

    def _matmul(
        self, name: str, source: Buffer, output: Buffer, columns: int, inner: int
    ) -> ops.Matmul:
        dtype = self.model.stored_weight_dtype
        weight = Buffer(f"{name}.weight", "weight", (columns, inner), dtype, per_layer=True)
        return ops.Matmul(
            name=name,
            source=source,
            weight=weight,
            output=output,
            rows=self.tokens,
            columns=columns,
            inner=inner,
            kernel=self._matmul_kernel(self.tokens, columns, inner),
        )

    def _matmul_kernel(self, rows: int, columns: int, inner: int) -> MatmulKernel:
        suits = ops.suits_skinny(rows, columns, inner)
        return self.small_matmul if suits else "cublas"

    def _reduce(self, name: str, buffer: Buffer) -> tuple[ops.AllReduce, ...]:
        if self.shards == 1:
            return ()
        return (
            ops.AllReduce(
                name=name,
                buffer=buffer,
                payload_bytes=buffer.num_bytes,
                group=self.group,
                algorithm=self.all_reduce,
            ),
        )

    def _rows(self, name: str, rows: int, columns: int) -> Buffer:
        return Buffer(name, "activation", (rows, columns), self.model.dtype)

    def _scratch(self, name: str, columns: int) -> Buffer:
        return self._rows(name, self.tokens, columns)

    def _per_microbatch(self, name: str, kind: BufferKind, rows: int) -> Buffer:
        shape = (rows, self.model.hidden_size)
        return Buffer(name, kind, shape, self.model.dtype, per_microbatch=True)

    def _token_ids(self, name: str, rows: int = 0) -> Buffer:
        return Buffer(name, "tokens", (rows or self.tokens,), "int64", per_microbatch=True)
