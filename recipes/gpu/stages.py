"""The stages of `make gpu`, in order: name -> description."""

STAGES = {
    "machine": "versions, and the rate of matrix products",
    "check": "every model at tiny: features, losses and gradients as on a CPU; bf16, compiled, resumed; no waiting within a step",
    "pace": "steady steps of every small preset: speed, MFU, memory, waiting for data",
    "versus": "decoding and training steps against the reference libraries",
    "train": "whole trainings of small, evaluated",
}
