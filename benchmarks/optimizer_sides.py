"""The two sides of ``benchmarks/optimizer.py``: the project's training and TRL's, step by step."""

import logging
import os
import resource
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

OURS = ("kto", "hapo")
TRL = ("trl_on", "trl_off")  # precompute_ref_log_probs
FAR = 10**6  # steps of a run that nobody finishes


@dataclass(frozen=True)
class Options:
    """shape: a llama_policy.Shape. parameters: lora or full. bfloat16: compute in it, and keep what
    is frozen in it."""

    shape: object
    batch: int
    parameters: str
    device: str
    bfloat16: bool
    lr: float
    seed: int


class Turns:
    """Steps where the parent asks for them: their seconds, and what they say of themselves."""

    def __init__(self, connection, device: str):
        self.connection, self.device = connection, device
        self.left, self.over, self.seconds, self.metrics = 0, False, [], []
        self.before_mib = 0.0

    def ready(self) -> None:
        """All is imported, and nothing made."""
        self.before_mib = self._peak_mib()

    def wait(self) -> None:
        """After the last step asked for: answer, and take the next request; none: it is over."""
        if self.left == 0:
            self.connection.send((self.seconds, self.metrics, self._peak_mib() - self.before_mib))
            self.seconds, self.metrics = [], []
            self.left = self.connection.recv()
            self.over = self.left == 0

    def begin(self) -> None:
        self._began = self._now()

    def end(self) -> None:
        self.seconds.append(self._now() - self._began)
        self.left -= 1

    def _now(self) -> float:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def _peak_mib(self) -> float:
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def child(connection, arm: str, options: Options) -> None:
    """Steps of one setting, as the parent asks."""
    turns = Turns(connection, options.device)
    with tempfile.TemporaryDirectory() as folder:
        (train_ours if arm in OURS else train_trl)(arm, options, turns, Path(folder))


def train_ours(arm: str, options: Options, turns: Turns, folder: Path) -> None:
    """What ``trainer.optimize`` does with a table and a policy."""
    from llama_policy import LlamaPolicy, made_up_steps

    from hapo_ros.learning import methods, reference
    from hapo_ros.learning.loop import Cancelled, Hooks, Training
    from hapo_ros.learning.runlog import RunLog
    from hapo_ros.learning.sampler import BalancedSampler
    from hapo_ros.learning.updates import OBJECTIVES
    from hapo_ros.policies import lora

    settings = methods.resolve(
        arm,
        {
            "batch_size": options.batch,
            "parameters": options.parameters,
            "lr": options.lr,
            "steps": FAR,
            "warmup": 0,
            "seed": options.seed,
            "no_gripper_rule": arm == "kto",
        },
    )
    with RunLog(folder) as log:
        turns.ready()
        policy = LlamaPolicy(network(options), autocast=options.bfloat16)
        table = made_up_steps(options.shape, options.batch, options.seed)
        objective = OBJECTIVES[arm]
        given = policy, table, objective.second(settings), objective.draws(policy, settings)
        kept = reference.compute(*given, options.batch)
        if options.parameters == "lora":
            lora.add_lora(policy, settings["lora_rank"], settings["lora_alpha"], options.seed)
        update = objective(policy, table, settings, kept)
        sampler = BalancedSampler(table.groups, options.batch, settings["fractions"], options.seed)
        training = Training(policy, update, sampler, settings, log)

        def before() -> bool:
            turns.wait()
            turns.begin()
            return turns.over

        def after(report: dict) -> None:
            turns.end()
            made = training.recent[-1]
            turns.metrics.append({key: made[key] for key in ("loss", "z0", "grad_norm")})

        with suppress(Cancelled):
            training.run(Hooks(progress=after, cancelled=before))


def train_trl(arm: str, options: Options, turns: Turns, folder: Path) -> None:
    """KTOTrainer on one batch, collated before by its own collator."""
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")  # of names that TRL's own settings use
    import datasets
    import torch
    import transformers
    from llama_policy import BINS, made_up_steps
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
    from trl import KTOConfig, KTOTrainer

    from hapo_ros.learning.reference import partners
    from hapo_ros.policies.lora import ALPHA, RANK
    from hapo_ros.policies.tokenizers import UniformBins

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    turns.ready()
    shape, lora = options.shape, options.parameters == "lora"
    table = made_up_steps(shape, options.batch, options.seed)
    tokens = UniformBins(BINS).encode(table.actions[:, 0]) + shape.vocabulary - BINS
    other = tokens[partners(table.episode, options.seed)]
    examples = [
        {
            "prompt_ids": table.object_state[row].astype(int).tolist(),
            "completion_ids": tokens[row].tolist(),
            "KL_completion_ids": other[row].tolist(),
            "label": bool(table.desirable[row]),
        }
        for row in range(len(table))
    ]

    class Prepared(KTOTrainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(Repeated(batch), batch_size=None)

    class Taking(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            self._next(control)

        def on_step_begin(self, args, state, control, **_):
            turns.begin()

        def on_step_end(self, args, state, control, **_):
            turns.end()

        def on_log(self, args, state, control, logs, **_):
            if "loss" in logs:
                turns.metrics.append(
                    {"loss": logs["loss"], "z0": logs["kl"], "grad_norm": logs["grad_norm"]}
                )
                self._next(control)

        def _next(self, control):
            turns.wait()
            control.should_training_stop = turns.over

    # The trainer wants texts, which it tokenizes; what it then trains on is `batch`.
    texts = {"prompt": ["a"] * len(table), "completion": ["a"] * len(table)}
    trainer = Prepared(
        network(options),
        network(options) if arm == "trl_off" and not lora else None,
        KTOConfig(
            str(folder),
            per_device_train_batch_size=options.batch,
            precompute_ref_log_probs=arm == "trl_on",
            learning_rate=options.lr,
            lr_scheduler_type="constant",
            max_steps=FAR,
            seed=options.seed,
            bf16=options.bfloat16,
            use_cpu=options.device == "cpu",
            gradient_checkpointing=False,
            max_length=None,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict(texts | {"label": table.desirable.tolist()}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "end": 1}, unk_token="a")),
            eos_token="end",
            pad_token="end",
        ),
        callbacks=[Taking()],
        peft_config=LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear"
        )
        if lora
        else None,
    )
    trainer.remove_callback(PrinterCallback)
    batch = {
        key: value.to(options.device) for key, value in trainer.data_collator(examples).items()
    }
    if arm == "trl_on":
        kept = trainer.compute_ref_log_probs(trainer.model, batch)
        batch |= dict(zip(("ref_logps", "ref_KL_logps"), kept, strict=True))
    trainer.train()


@dataclass(frozen=True)
class Repeated:
    """The same batch over and over."""

    batch: dict

    def __len__(self) -> int:
        return FAR

    def __getitem__(self, index: int) -> dict:
        return self.batch


def network(options: Options):
    """The same weights for every setting."""
    import torch
    from llama_policy import language_model

    frozen = options.parameters == "lora"
    dtype = torch.bfloat16 if options.bfloat16 and frozen else torch.float32
    return language_model(options.shape, options.batch, options.seed, options.device, dtype)
