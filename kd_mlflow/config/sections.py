"""The sections that options of commands are put together from: every default, bound and help text."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from kd_mlflow.config.fields import SEEDS, Names, Options, option
from kd_mlflow.places import offline_store

Role = Literal["teacher", "control", "student"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["step", "cosine", "multistep", "constant"]
Augmentation = Literal["none", "crop", "strong"]
Stem = Literal["standard", "small"]
Normalization = Literal["auto", "data", "imagenet", "unit", "symmetric", "bytes"]
CacheUse = Literal["off", "auto", "on"]
Switch = Literal["auto", "on", "off"]


class ImageOptions(Options):
    """How images are prepared."""

    image_size: int = option(
        224, "Side of the square the network sees, in pixels.", panel="Data", common=True, ge=16, le=1024
    )
    max_bad: float = option(
        0.01,
        "Largest share of unreadable pictures before preparation stops; files beside them do not count.",
        panel="Data",
        ge=0,
        le=1,
    )
    split_seed: int = option(
        0, "Seed of the 60/20/20 split of a folder without train and test.", panel="Data", ge=0, le=SEEDS
    )
    follow_links: bool = option(
        False, "Follow links that lead out of the data folder: pools, caches of DVC and of hubs.", panel="Data"
    )


class DataOptions(ImageOptions):
    """Where the images come from and how they are prepared."""

    data: str = option(
        "digits",
        "digits (built in), cifar10, cifar100, fashionmnist, imagenette, a folder of class folders, or a .tar of one.",
        panel="Data",
        common=True,
        min_length=1,
    )


class AugmentationOptions(Options):
    """What happens to a training image; a function of (seed, epoch, sample) alone."""

    augmentation: Augmentation = option(
        "crop",
        "none (centre crop), crop (random resized crop), strong (crop, TrivialAugment, random erasing).",
        panel="Augmentation",
    )
    flip: bool = option(True, "Mirror half of the training images (not with augmentation none).", panel="Augmentation")
    crop_min_scale: float = option(
        0.35, "Smallest share of the image's area that a random crop keeps.", panel="Augmentation", gt=0, le=1
    )


class TrainingOptions(Options):
    """The loop, the same for every role."""

    epochs: int = option(50, "Passes over the training split, for every role.", panel="Training", common=True, ge=1)
    batch_size: int = option(64, "Images a step.", panel="Training", common=True, ge=1)
    optimizer: Optimizer = option("adam", "The optimiser.", panel="Training")
    learning_rate: float = option(
        1e-3, "Learning rate at the start (after warm-up).", panel="Training", common=True, gt=0
    )
    weight_decay: float = option(0.0, "L2 penalty (Adam, SGD) or decoupled decay (AdamW).", panel="Training", ge=0)
    momentum: float = option(0.9, "Momentum of SGD.", panel="Training", ge=0, lt=1)
    schedule: Schedule = option("step", "How the learning rate falls.", panel="Training")
    step_size: int = option(10, "Epochs between two falls of schedule step.", panel="Training", ge=1)
    milestones: tuple[int, ...] = option((), "Epochs at which schedule multistep falls: 30,60,80.", panel="Training")
    gamma: float = option(0.1, "Factor of each fall (step, multistep).", panel="Training", gt=0, le=1)
    warmup_epochs: float = option(0.0, "Epochs of linear warm-up.", panel="Training", ge=0)
    trunk_factor: float = option(
        1.0, "Learning rate of everything but the new head, as a factor.", panel="Training", ge=0, le=1
    )
    label_smoothing: float = option(0.0, "Label smoothing of the cross-entropy.", panel="Training", ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = option(
        "none", "balanced weighs each class by the inverse of its frequency in train.", panel="Training"
    )
    accumulate: int = option(
        1,
        "Parts that a batch goes through the network in, for memory; their gradients are added up. Doubled when "
        "memory runs out.",
        panel="Training",
        ge=1,
    )
    devices: int = option(
        1,
        "Processes that train together, each with a share of every batch: on a GPU of its own, or on a share of the "
        "cores. Under torchrun: as many as it started.",
        panel="Training",
        ge=1,
        le=4096,
    )
    gradient_clip: float = option(0.0, "Largest norm of the gradient; 0 for no limit.", panel="Training", ge=0)
    patience: int = option(
        0, "Stop after so many epochs without a better validation accuracy; 0 never.", panel="Training", ge=0
    )
    ema: float = option(
        0.0,
        "Decay of an exponential moving average of the weights, which is then what is evaluated and kept; 0 for none.",
        panel="Training",
        ge=0,
        lt=1,
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "auto is bfloat16 on GPUs that have it, float16 with scaled gradients on GPUs that do not, float32 elsewhere.",
        panel="Training",
    )
    compile: Switch = option(
        "auto", "torch.compile for the network that learns, where a method needs its logits alone; auto: on GPUs.",
        panel="Speed",
    )  # fmt: skip
    memory_format: Literal["auto", "contiguous", "channels_last"] = option(
        "auto", "How the network that learns lies in memory; auto: channels_last on GPUs.", panel="Speed"
    )
    seed: int = option(0, "Seed of weights, order and augmentation.", panel="Training", common=True, ge=0, le=SEEDS)


class SpeedOptions(Options):
    """What makes a distillation step cheap."""

    teacher_backend: Literal["auto", "eager", "traced", "compiled"] = option(
        "auto",
        "How the frozen teacher runs: traced (BatchNorm folded) on CPUs, compiled on GPUs, or plainly (eager).",
        panel="Speed",
    )
    teacher_cache: CacheUse = option(
        "off",
        "Keep the teacher's outputs for other trainings that see the same views; auto: where the method allows it.",
        panel="Speed",
    )
    cache_precision: Literal["float16", "float32"] = option(
        "float16", "Precision of the teacher's outputs when they are kept.", panel="Speed"
    )
    cache_gb: float = option(20.0, "GB that the caches of all teachers may take.", panel="Speed", ge=0)


class ModelOptions(Options):
    """What teacher and student have in common."""

    stem: Stem = option(
        "standard", "small: a 3x3 stem without pooling, for tiny images (6 to 16 times the work).", panel="Models"
    )
    squeeze_excitation: bool = option(
        False,
        "Squeeze-and-excitation blocks in ResNets; their gates start at 0.98.",
        panel="Models",
    )
    dropout: float = option(0.0, "Dropout before the classifier.", panel="Models", ge=0, lt=1)
    normalization: Normalization = option(
        "auto",
        "Mean and std inside the model: data (of the training split), imagenet, unit (pixels 0..1), symmetric (-1..1), "
        "bytes (0..255), or auto: those of the pretrained weights, for a weights file what it carries, else what is "
        "clearly best on validation, else data.",
        panel="Models",
    )


class TeacherOptions(Options):
    """The teacher's network and what differs in its training."""

    teacher_arch: str = option(
        "resnet34",
        "Teacher architecture: a torchvision name, timm:<name>, or module:factory.",
        panel="Models",
        common=True,
    )
    teacher_weights: str = option(
        "none", "Weights the teacher starts from: none, imagenet, or a file.", panel="Models", common=True
    )
    teacher_epochs: int | None = option(None, "Epochs of the teacher, if they differ.", panel="Training", ge=1)
    teacher_learning_rate: float | None = option(
        None, "Learning rate of the teacher, if it differs.", panel="Training", gt=0
    )
    teacher_weight_decay: float | None = option(
        None, "Weight decay of the teacher, if it differs.", panel="Training", ge=0
    )
    teacher_normalization: Normalization | None = option(
        None,
        "Mean and std inside the teacher, if they differ; empty: as --normalization, and for a file given as --teacher "
        "auto: what the file carries, else what is clearly best on validation, else --normalization.",
        panel="Models",
    )


class StudentOptions(Options):
    """The student's network."""

    student: str = option(
        "resnet18",
        "Student architecture: a torchvision name, timm:<name>, or module:factory.",
        panel="Models",
        common=True,
    )
    student_weights: str = option(
        "none", "Weights the student starts from: none, imagenet, or a file.", panel="Models", common=True
    )
    label_share: float = option(
        1.0,
        "Share of each class's training images whose labels student and control have; the teacher has all, and "
        "teaches the student on the rest.",
        panel="Data",
        gt=0,
        le=1,
    )


class DistillationOptions(Options):
    """From whom and how the student learns."""

    teacher: Names = option(
        ("auto",),
        "auto (the champion for this data, else trained now), models:/NAME@ALIAS, a run id, a pulled "
        "folder, a weights file, or an architecture; several with commas between, where the method takes them.",
        panel="Distillation",
        common=True,
        min_length=1,
    )
    require_strong_teacher: bool = option(
        False, "Refuse a teacher that is near chance or worse than the control on validation.", panel="Distillation"
    )


class MethodChoice(Options):
    """By which method, and its options."""

    method: str = option(
        "kd",
        "The distillation method; `kd-mlflow methods` lists them, and `kd-mlflow methods dkd` the options of one "
        "(--dkd-beta 2).",
        panel="Distillation",
        common=True,
    )
    temperature: float | None = option(
        None,
        "Temperature of the softened distributions; empty: the method's own (kd: 4).",
        panel="Distillation",
        common=True,
        gt=0,
    )
    alpha: float | None = option(
        None,
        "Weight of the distillation term, 1 - alpha on the cross-entropy; empty: the method's own (kd: 0.7).",
        panel="Distillation",
        common=True,
        ge=0,
        le=1,
    )
    method_options: dict[str, Any] = option(
        {}, "The method's own options: --METHOD-OPTION, listed by `kd-mlflow methods METHOD`.", panel=None
    )
    control: bool = option(True, "Also train, or reuse, the same student with labels only.", panel="Distillation")


class ComparisonOptions(Options):
    """What is compared."""

    data: Names = option(
        ("digits",), "Data as for distill; several repeat the comparison on each.", panel="Data", common=True
    )
    methods: Names = option(
        ("kd",),
        "Methods with commas between, or all; their options are --METHOD-OPTION (--dkd-beta 2).",
        panel="Distillation",
        common=True,
        min_length=1,
    )
    seeds: int = option(
        1, "How many seeds each method is trained with, from --seed on.", panel="Training", common=True, ge=1, le=1000
    )
    method_options: dict[str, dict[str, Any]] = option(
        {}, "Options of the methods by method: --METHOD-OPTION.", panel=None
    )


class PlaceOptions(Options):
    """Where the work is done and recorded."""

    experiment: str = option(
        "",
        "MLflow experiment; empty: that of `mlflow run` or MLFLOW_EXPERIMENT_NAME or _ID, else kd-mlflow.",
        panel="Run",
    )
    tracking_uri: str = option(
        "", "MLflow tracking URI; empty: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.", panel="Run"
    )
    offline: bool = option(
        False, "Keep runs on this machine, without a tracking server; `kd-mlflow sync` sends them later.", panel="Run"
    )
    device: str = option(
        "auto", "auto, cpu, cuda, cuda:N or mps.", panel="Run", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$"
    )

    @model_validator(mode="before")
    @classmethod
    def _own_store(cls, values: Any) -> Any:
        """Offline is a store of this machine's own, for all that reads the options."""
        if not (isinstance(values, dict) and values.get("offline") in (True, "true", "True", "1")):
            return values
        store = offline_store()
        if values.get("tracking_uri") not in (None, "", store):
            raise ValueError("--offline keeps runs on this machine; leave --tracking-uri away.")
        return {**values, "tracking_uri": store}


class RegistryOptions(Options):
    """What becomes of a trained model."""

    name: str = option(
        "",
        "Name in the registry (NAME-teacher, NAME-student); empty: taken from the data.",
        panel="Run",
        common=True,
        pattern=r"^[^/:@]*$",
    )
    register_model: bool = option(True, "Put the trained model into the registry.", panel="Run")


class ReuseOptions(Options):
    """What is taken over from earlier runs."""

    reuse: bool = option(True, "Reuse a finished run of the same fingerprint for teacher and control.", panel="Run")
