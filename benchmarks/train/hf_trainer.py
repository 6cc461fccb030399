"""transformers' Trainer on transformers' class, as a user writes it: a collator that pads, everything else default.

[dict] ──DataLoader, collate──> padded batch ──Trainer──> loss
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.train.measure import BETAS, CLIP, EPS, RATE, Setting, Update, clock
from benchmarks.train.shapes import open_theirs
from pumice.types import IGNORE, IMAGE, Features


class Clock(TrainerCallback):
    """CPU and wall time at the beginning and after every optimiser step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[float, float]] = []

    def mark(self, *_: Any, **__: Any) -> None:
        self.marks.append(clock(self.device))

    on_train_begin = on_step_end = mark


class HfTrainer:
    """(c): updates are made by gradient accumulation, in the order given."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model = open_theirs(setting.shape, setting.folder)
        if setting.frozen:
            self.model.model.vision_tower.requires_grad_(False)
        self.rows: list[int] = []

    def run(self, updates: Sequence[Sequence[Features]]) -> list[Update]:
        passes = len(updates[0]) // self.setting.batch
        marks, on_cpu = Clock(self.setting.device), self.setting.device.type == "cpu"
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=self.setting.batch,
                gradient_accumulation_steps=passes,
                max_steps=len(updates),
                learning_rate=RATE, lr_scheduler_type="constant", adam_beta1=BETAS[0], adam_beta2=BETAS[1],
                adam_epsilon=EPS, weight_decay=0.0, max_grad_norm=CLIP,
                bf16=self.setting.dtype == torch.bfloat16,
                use_cpu=on_cpu,  # else it takes the GPU, and moves the model and each batch there by itself
                train_sampling_strategy="sequential",  # the samples come shuffled, the same for all contenders
                remove_unused_columns=False,
                logging_steps=1, logging_strategy="steps", save_strategy="no", report_to="none", disable_tqdm=True,
            )  # fmt: skip
            trainer = Trainer(
                model=self.model,
                args=arguments,
                train_dataset=[self.item(document) for update in updates for document in update],  # type: ignore[arg-type]
                data_collator=self.collate,
                callbacks=[marks],
            )
            trainer.train()
        losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
        done = []
        for i, loss in enumerate(losses):
            (cpu, wall), (cpu_after, wall_after) = marks.marks[i : i + 2]
            rows = sum(self.rows[i * passes : (i + 1) * passes])
            done.append(Update(loss, rows, cpu_after - cpu, wall_after - wall))
        return done

    def item(self, document: Features) -> dict[str, Any]:
        """What a processor gives for one sample."""
        ids = torch.where(document.ids == IMAGE, self.setting.shape.image_token, document.ids)
        item: dict[str, Any] = {"input_ids": ids, "labels": document.labels}
        if document.layouts:
            (placed,) = document.layouts
            item |= {"pixel_values": document.tiles, "image_sizes": torch.tensor([placed.size[1], placed.size[0]])}
        return item

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A padded batch; pictures of several views as transformers' processor pads them, to the most views."""
        ids = pad_sequence([item["input_ids"] for item in items], batch_first=True)
        labels = pad_sequence([item["labels"] for item in items], batch_first=True, padding_value=IGNORE)
        mask = pad_sequence([torch.ones_like(item["input_ids"]) for item in items], batch_first=True)
        batch = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        pictures = [item for item in items if "pixel_values" in item]
        if pictures and self.setting.shape.kind == "Llava":
            batch["pixel_values"] = torch.cat([item["pixel_values"] for item in pictures])
        elif pictures:
            batch["pixel_values"] = pad_sequence([item["pixel_values"] for item in pictures], batch_first=True)
            batch["image_sizes"] = torch.stack([item["image_sizes"] for item in pictures])
        self.rows.append(mask.numel())
        return batch
