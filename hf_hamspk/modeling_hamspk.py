"""Speaker models: waveforms in, embeddings out, and a head for training.

Letters: `B` batch, `L` samples, `T` frames, `D` embedding size, `K` speakers.
"""

import math
import os
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import XVectorOutput
from transformers.utils.generic import ModelOutput

from .comparison import SpeakerComparison
from .configuration_hamspk import HamSpkConfig
from .ecapa import Ecapa
from .frontend import FilterBank, length_mask, make_frontend
from .heads import CosineSimilarity, HyperbolicSimilarity, LinearSimilarity, make_head
from .inputs import check_batch, check_labels, make_feature_extractor
from .pooling import (
    AttentivePooling,
    FactorisedAttentivePooling,
    LayerMix,
    StatisticsPooling,
    batch_norm,
    keep_valid,
)

# Arguments of `save_pretrained` that say where on the Hub the files go.
HUB_ARGUMENTS = ("push_to_hub", "repo_id", "token", "revision", "create_pr", "private", "commit_message")


@dataclass
class HamSpkOutput(ModelOutput):
    """Output of `HamSpkModel`.

    Args:
        embeddings: `(B, D)`, neither normalised nor projected.
        last_hidden_state: `(B, T, C)` frames that were pooled, 0 where not valid; None for MHFA.
    """

    embeddings: Tensor | None = None
    last_hidden_state: Tensor | None = None


class HamSpkPreTrainedModel(SpeakerComparison, PreTrainedModel):
    """Weights, saving and the use of a speaker model, shared by the model with and without head."""

    config: HamSpkConfig
    config_class = HamSpkConfig
    base_model_prefix = "hamspk"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    # The head of a trained model is left out when only the embeddings are wanted.
    _keys_to_ignore_on_load_unexpected = [r"^head\."]  # noqa: RUF012 (transformers declares it so)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv1d | nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.BatchNorm1d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if module.running_mean is not None and module.running_var is not None:
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
        elif isinstance(module, LinearSimilarity | CosineSimilarity | HyperbolicSimilarity):
            module.reset_centres()
        elif isinstance(module, LayerMix):
            module.restart()
        elif isinstance(module, FilterBank):
            module.restore_constants()

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        if self.config.backbone_config is not None:
            super()._set_gradient_checkpointing(enable, *args, **kwargs)
        elif enable:
            raise ValueError(
                "Gradient checkpointing is for transformers backbones: computing ECAPA-TDNN twice would update its "
                "batch statistics twice. To save memory, use smaller batches or shorter crops."
            )

    def get_input_embeddings(self) -> None:
        """There are no token embeddings; quantisation asks."""

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, *args, **kwargs) -> None:
        """As in transformers, and the feature extractor's file beside the weights."""
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            to_hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            make_feature_extractor(self.config.sampling_rate).save_pretrained(os.fspath(save_directory), **to_hub)


class HamSpkModel(HamSpkPreTrainedModel):
    """Waveforms to speaker embeddings: front-end, ECAPA-TDNN or a transformers backbone, pooling, projection."""

    def __init__(self, config: HamSpkConfig):
        super().__init__(config)
        self.frontend = make_frontend(config)
        self.layer_mix: LayerMix | None = None
        if config.backbone_config is None:
            self.backbone = Ecapa(config)
            channels = config.ecapa_output_channels
        else:
            backbone_config = config.backbone_config
            if not isinstance(backbone_config, PreTrainedConfig):
                raise ValueError(
                    "backbone_config must be a configuration; HamSpkConfig makes one of a dict it is given."
                )
            self.backbone = AutoModel.from_config(backbone_config)
            channels = backbone_config.hidden_size
            layers = backbone_config.num_hidden_layers + 1
            if config.pooling != "mhfa":
                self.layer_mix = LayerMix(layers)
        if config.pooling == "mhfa":
            self.pooling = FactorisedAttentivePooling(layers, channels, config.pooling_channels, config.mhfa_heads)
        elif config.pooling == "statistics":
            self.pooling = StatisticsPooling(channels)
        else:
            self.pooling = AttentivePooling(channels, config.pooling_channels)
        self.pooled_norm = nn.BatchNorm1d(self.pooling.output_size)
        self.projection = nn.Linear(self.pooling.output_size, config.embedding_size)
        self.embedding_norm = nn.BatchNorm1d(config.embedding_size) if config.normalize_embedding else nn.Identity()
        self._freeze()
        self.post_init()

    @property
    def groups_by_length(self) -> bool:
        """Whether the backbone normalises over time (group norm), so that padding would change its frames."""
        return getattr(self.config.backbone_config, "feat_extract_norm", "layer") == "group"

    def freeze_backbone(self) -> None:
        """Stop the gradient of a transformers backbone and keep it in evaluation mode, also in `train()`."""
        if self.config.backbone_config is None:
            raise ValueError("freeze_backbone is for transformers backbones; ECAPA-TDNN is trained whole.")
        self.config.freeze_backbone = True
        self._freeze()

    def unfreeze_backbone(self) -> None:
        """Train the backbone, but for its feature encoder unless `config.freeze_feature_encoder` is False."""
        self.config.freeze_backbone = False
        self.backbone.requires_grad_(True)
        self.backbone.train(self.training)
        self._freeze()

    def _freeze(self) -> None:
        if self.config.freeze_backbone:
            self.backbone.requires_grad_(False)
            self.backbone.eval()
        elif self.config.freeze_feature_encoder and hasattr(self.backbone, "feature_extractor"):
            self.backbone.get_submodule("feature_extractor").requires_grad_(False)

    def train(self, mode: bool = True) -> "HamSpkModel":
        super().train(mode)
        # `from_pretrained` makes new parameters, which have a gradient again, and ends in `eval()`.
        self._freeze()
        return self

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> HamSpkOutput | tuple:
        """Embed a batch.

        Args:
            input_values: `(B, L)` waveforms in [-1, 1] at `config.sampling_rate`, padded on the right.
            attention_mask: `(B, L)`, 1 for samples and 0 for padding; None where nothing is padded.
            return_dict: False for a plain tuple.
            kwargs: ignored; what a processor may add.

        Raises:
            ValueError: not two-dimensional, a mask of another shape, shorter than one analysis window (25 ms), padded
                on the left, or a single utterance in training.
        """
        check_batch(input_values, attention_mask, self.frontend.smallest_length)
        if self.pooled_norm.training and input_values.shape[0] < 2:
            raise ValueError(
                "Batch normalisation in training needs at least 2 utterances per batch; drop the last batch."
            )
        lengths = None if attention_mask is None else attention_mask.long().sum(-1)
        features, lengths = self.frontend(input_values, lengths)
        if self.config.backbone_config is None:
            mask = None if lengths is None else length_mask(lengths, features.shape[-1])
            frames = self.backbone(features.to(self.dtype), mask)
            pooled = self.pooling(frames, mask)
        else:
            frames, pooled = self._pool_layers(features.to(self.dtype), lengths)
        pooled = batch_norm(self.pooled_norm, pooled.to(self.dtype), None)
        embeddings = self.embedding_norm(self.projection(pooled))
        output = HamSpkOutput(embeddings=embeddings, last_hidden_state=None if frames is None else frames.mT)
        return output.to_tuple() if return_dict is False else output

    def _pool_layers(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Run a transformers backbone and pool its layers; frames `(B, C, T)` (None for MHFA) and `(B, pooled)`."""
        if lengths is not None and self.groups_by_length:
            hidden = self._layers_by_length(waveforms, lengths)
        else:
            samples_mask = None if lengths is None else length_mask(lengths, waveforms.shape[1]).long()
            hidden = self.backbone(waveforms, attention_mask=samples_mask, output_hidden_states=True).hidden_states
        mask = None
        if lengths is not None:
            # Every speech encoder of transformers has this method; the type checker sees a Module's attribute.
            frame_lengths = self.backbone._get_feat_extract_output_lengths(lengths)  # pyright: ignore[reportCallIssue]
            mask = length_mask(frame_lengths.clamp_min(1), hidden[0].shape[1])
        if self.layer_mix is None:
            return None, self.pooling(hidden, mask)
        frames = keep_valid(self.layer_mix(hidden).mT, mask)
        return frames, self.pooling(frames, mask)

    def _layers_by_length(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Hidden states N times `(B, T, C)`, each group of equal length run apart and unpadded, then padded with 0."""
        groups, places = [], []
        for length in lengths.unique().tolist():
            at = (lengths == length).nonzero()[:, 0]
            groups.append(self.backbone(waveforms[at, :length], output_hidden_states=True).hidden_states)
            places.append(at)
        size, order = groups[-1][0].shape[1], torch.cat(places).argsort()
        # The last group is the longest.
        return tuple(
            torch.cat([nn.functional.pad(part, (0, 0, 0, size - part.shape[1])) for part in layer])[order]
            for layer in zip(*groups, strict=True)
        )


class HamSpkForXVector(HamSpkPreTrainedModel):
    """A speaker model with its training head: embeddings, logits over the training speakers, loss."""

    def __init__(self, config: HamSpkConfig):
        super().__init__(config)
        self.hamspk = HamSpkModel(config)
        self.head = make_head(config)
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike,
        backbone_kwargs: dict | None = None,
        config: HamSpkConfig | None = None,
        **config_fields,
    ):
        """Start from a pretrained transformers speech encoder on the Hub or in a folder, with everything else new.

        Args:
            backbone: for example `"microsoft/wavlm-base-plus"`.
            backbone_kwargs: passed to `AutoModel.from_pretrained`, for example `{"revision": "main"}`.
            config: the whole model's, with the backbone's configuration in it, instead of `config_fields`.
            config_fields: fields of `HamSpkConfig`, such as `head`, `num_labels` and `id2label`.
        """
        kwargs = {} if backbone_kwargs is None else backbone_kwargs
        if config is not None:
            kwargs = kwargs | {"config": config.backbone_config}
        pretrained = AutoModel.from_pretrained(backbone, **kwargs)
        if config is None:
            config = HamSpkConfig(backbone_config=pretrained.config, **config_fields)
        model = cls(config)
        model.hamspk.backbone = pretrained
        model.hamspk._freeze()
        return model

    def set_margin(self, margin: float) -> None:
        """Use another margin (in [0, 3)) from now on; the configuration, and so a saved model, follows."""
        self.head.set_margin(margin)
        self.config.margin = self.head.margin

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As in transformers; a learned curvature is written into the configuration, which scoring reads."""
        self._record_curvature()
        super().save_pretrained(save_directory, *args, **kwargs)

    def score(self, enrolment: Tensor, test: Tensor) -> Tensor:
        """As `HamSpkModel.score`, with the curvature as learned so far."""
        self._record_curvature()
        return super().score(enrolment, test)

    def score_matrix(self, enrolment: Tensor, test: Tensor) -> Tensor:
        """As `HamSpkModel.score_matrix`, with the curvature as learned so far."""
        self._record_curvature()
        return super().score_matrix(enrolment, test)

    def _record_curvature(self) -> None:
        for module in self.head.modules():
            if isinstance(module, HyperbolicSimilarity) and module.log_curvature is not None:
                self.config.curvature = module.recorded_curvature()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> XVectorOutput | tuple:
        """Embeddings, logits and loss.

        Args:
            input_values: `(B, L)` waveforms in [-1, 1] at `config.sampling_rate`, padded on the right.
            attention_mask: `(B, L)`, 1 for samples and 0 for padding; None where nothing is padded.
            labels: `(B,)` speakers in [0, num_labels), for the loss.
            return_dict: False for a plain tuple.
            kwargs: ignored; what a processor may add.

        Returns:
            `loss`: scalar, with the margin; `logits` `(B, K)`: scaled, without margin; `embeddings` `(B, D)`.

        Raises:
            ValueError: labels outside [0, num_labels) (checked on the CPU), and those of `HamSpkModel.forward`.
        """
        if labels is not None and labels.device.type == "cpu":
            check_labels(labels, cast(int, self.config.num_labels))
        embeddings = self.hamspk(input_values, attention_mask).embeddings
        logits, loss = self.head(embeddings, labels)
        output = XVectorOutput(loss=loss, logits=logits, embeddings=embeddings)
        return output.to_tuple() if return_dict is False else output
