"""Nothing that is read can execute, and a run folder names no other place: hostile tokenizers, configurations and run folders.

Whoever answers "yes" to every question must not run their code either: there is no question.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models as kinds
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import models
from models.asif import ASIFConfig
from models.clip import CLIP, CLIPConfig
from models.frozen import FrozenConfig
from models.lm import LM, LMConfig
from models.magic import MAGIC, MAGICConfig
from models.published import published
from models.shared.backbones import LanguageConfig, image_tower, language_model, named_tower
from models.shared.text import BPETokenizer, HubTokenizer, from_text, named_tokenizer
from models.shared.towers import known_tower
from models.shared.transformer import TransformerConfig
from models.shared.vision import VisionConfig
from tests.processes import command

ROOT = Path(__file__).parent.parent
WORDS = BPETokenizer.train(["a red circle", "two blue squares"], 300)
SMALL = LanguageConfig(width=32, depth=1, heads=2, hidden=48, context=64)
TOWER = VisionConfig(width=32, depth=1, heads=2, image_size=32, patch_size=16)
TEXT = TransformerConfig(width=32, depth=1, heads=2)
CLIP_ = CLIPConfig(vision=TOWER, text=TEXT, embed_dim=16, vocab_size=WORDS.vocab_size)
AUTO_MAP = {
    "AutoConfig": "code.Config",
    "AutoModel": "code.Model",
    "AutoModelForCausalLM": "code.Model",
    "AutoModelForSeq2SeqLM": "code.Model",
    "AutoImageProcessor": "code.Processor",
    "AutoProcessor": "code.Processor",
    "AutoTokenizer": ["code.Words", "code.Words"],
}
CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Words, CLIPImageProcessor as Processor
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that hostile code would write; every question is answered with yes."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "hf" / "modules"))

    def yes(prompt: str = "") -> str:
        (tmp_path / "asked").write_text(prompt)
        return "y"

    monkeypatch.setattr(builtins, "input", yes)
    return tmp_path / "executed"


def hostile(folder: Path, marker: Path, **config: Any) -> Path:
    """A folder as of the hub, whose code leaves a mark."""
    folder.mkdir()
    fast = FastTokenizer(kinds.WordLevel({"</s>": 0, "a": 1}, unk_token="</s>"))
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", bos_token="</s>").save_pretrained(folder)
    LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    ).save_pretrained(folder)
    (folder / "code.py").write_text(CODE.format(marker=str(marker)))
    (folder / "preprocessor_config.json").write_text(json.dumps({"auto_map": AUTO_MAP}))
    for name in ("config.json", "tokenizer_config.json"):
        known = json.loads((folder / name).read_text())
        known |= {"auto_map": AUTO_MAP} | (config if name == "config.json" else {"tokenizer_class": "Words"})
        (folder / name).write_text(json.dumps(known))
    return folder


def quietly(action: Callable[[], object]) -> str:
    """What an action says, whether it fails or not: both are right here."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def assert_untouched(marker: Path) -> None:
    assert not marker.exists(), "hostile code was executed"
    assert not (marker.parent / "asked").exists(), f"the user was asked: {(marker.parent / 'asked').read_text()}"


# ------------------------------------------------------------------------------------------ what a user names


@pytest.mark.parametrize("kind", ["llama", "unheard-of"])
@pytest.mark.parametrize(
    "action",
    [
        lambda folder: HubTokenizer(folder),
        lambda folder: named_tokenizer(folder),
        lambda folder: language_model(LanguageConfig(source=folder)),
        lambda folder: language_model(LanguageConfig(source=folder), weights=True),
        lambda folder: published(f"hf:{folder}"),
        lambda folder: models.model_of(ASIFConfig())(
            replace(ASIFConfig(), vision=TOWER, language=LanguageConfig(source=folder), sentences=True), WORDS
        ).fetch(),
        lambda folder: known_tower(replace(CLIP_, vision=replace(TOWER, tower=folder))),
        lambda folder: known_tower(replace(CLIP_, vision=replace(TOWER, tower=f"hf:{folder}"))),
    ],
    ids=["tokenizer", "named tokenizer", "architecture", "weights", "published", "sentences", "tower", "tower by hf:"],
)
def test_a_named_folder_with_code_of_its_own(action: Callable[[str], object], kind: str, tmp_path: Path, marker: Path) -> None:
    folder = hostile(tmp_path / "theirs", marker, model_type=kind)
    said = quietly(lambda: action(str(folder)))
    assert_untouched(marker)
    assert "trust_remote_code" not in said, "advice that would run it"


def test_code_that_a_folder_needs_is_refused_in_our_words(tmp_path: Path, marker: Path) -> None:
    folder = hostile(tmp_path / "theirs", marker, model_type="unheard-of")
    with pytest.raises(ValueError, match=r"theirs.* code of its own"):
        language_model(LanguageConfig(source=str(folder)))


@pytest.mark.parametrize("tower", [named_tower, image_tower])
@pytest.mark.parametrize("name", ["hf-hub:someone/vit", "local-dir:/somewhere", "/somewhere"])
def test_image_towers_are_timms_own(tower: Callable[[str], object], name: str) -> None:
    with pytest.raises(ValueError, match="timm has no model"):
        tower(name)


@pytest.mark.parametrize("page", ["frozen", "blip2", "minigpt4", "asif"])
def test_every_model_takes_timms_own_towers_only(page: str) -> None:
    config = models.model_class(page).Config.tiny()
    with pytest.raises(ValueError, match="timm has no model"):
        models.model_of(config)(replace(config, timm_name="local-dir:/somewhere", vocab_size=WORDS.vocab_size), WORDS)


# ------------------------------------------------------------------------------------------- what a run folder holds


def clip_run(folder: Path) -> Path:
    models.save(CLIP(CLIP_, WORDS), folder)
    return folder


def test_a_tokenizer_file_that_names_a_folder_or_the_hub(tmp_path: Path, marker: Path) -> None:
    theirs, run = hostile(tmp_path / "theirs", marker), clip_run(tmp_path / "run")
    other = clip_run(tmp_path / "other")
    for named in (str(theirs), str(other), "someone/tokenizer", "tiny:lm"):
        (run / "tokenizer.json").write_text(json.dumps({"tokenizer": named}))
        with pytest.raises(ValueError, match=r"tokenizer\.json.*names .* instead of holding a tokenizer"):
            models.load(run)
        assert_untouched(marker)


def test_only_the_special_tokens_of_a_described_tokenizer_are_read(tmp_path: Path, marker: Path) -> None:
    theirs = hostile(tmp_path / "theirs", marker)
    special = {"eos_token": "</s>", "tokenizer_file": str(theirs / "tokenizer.json"), "name_or_path": str(theirs), "auto_map": AUTO_MAP}
    fast = FastTokenizer(kinds.WordLevel({"</s>": 0, "b": 1}, unk_token="</s>"))
    tokenizer: Any = from_text(json.dumps({"tokenizer": "them", "special": special, "fast": json.loads(fast.to_str())}))
    assert (tokenizer.end, tokenizer.start, tokenizer.encode("b")) == (0, None, [1])
    assert str(theirs) not in json.dumps(tokenizer.describe(), default=str)
    assert_untouched(marker)


@pytest.mark.parametrize("field", ["source without architecture", "architecture with code", "another kind of attention"])
def test_a_configuration_that_names_another_place(field: str, tmp_path: Path, marker: Path) -> None:
    theirs, run = hostile(tmp_path / "theirs", marker), tmp_path / "run"
    models.save(LM(LMConfig(language=SMALL, vocab_size=WORDS.vocab_size), WORDS), run)
    described = json.loads((run / "model.json").read_text())
    llama = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama |= {"vocab_size": WORDS.vocab_size, "max_position_embeddings": 64, "tie_word_embeddings": True}
    code = {"auto_map": {name: f"{theirs}--{value}" for name, value in AUTO_MAP.items()}, "_name_or_path": str(theirs)}
    described["config"]["language"] |= {
        "source without architecture": {"source": str(theirs)},
        "architecture with code": {"source": str(theirs), "architecture": json.dumps(llama | code)},
        "another kind of attention": {"architecture": json.dumps(llama | {"attn_implementation": "someone/kernel:flash"})},
    }[field]
    (run / "model.json").write_text(json.dumps(described))
    if field == "source without architecture":
        with pytest.raises(ValueError, match=r"model\.json names the language model .* without its architecture"):
            models.load(run)
    else:
        assert models.load(run).language.config._attn_implementation in ("eager", "sdpa")  # type: ignore[union-attr]
    assert_untouched(marker)


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "timm_backbone", "backbone": "hf_hub:someone/vit"},
        {"model_type": "timm_wrapper", "architecture": "local-dir:/somewhere"},
        {"model_type": "detr", "backbone": "hf_hub:someone/vit"},
        {"model_type": "detr"},
    ],
)
def test_a_tower_with_a_backbone_elsewhere(architecture: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = clip_run(tmp_path / "run")
    described = json.loads((run / "model.json").read_text())
    tower = {"library": "transformers", "source": "", "architecture": json.dumps(architecture), "size": 32}
    described["config"]["vision"]["tower"] = json.dumps(tower)
    (run / "model.json").write_text(json.dumps(described))
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("timm was asked"))
    with pytest.raises(ValueError, match=r"model\.json .*has a backbone .*, which would be fetched"):
        models.load(run)


def test_a_tokenizer_inside_of_a_configuration(tmp_path: Path, marker: Path) -> None:
    theirs, run = hostile(tmp_path / "theirs", marker), tmp_path / "run"
    config = MAGICConfig(clip=CLIP_, language=SMALL, vocab_size=WORDS.vocab_size)
    models.save(MAGIC(config, WORDS), run)
    described = json.loads((run / "model.json").read_text())
    described["config"]["clip_tokenizer"] = json.dumps({"tokenizer": str(theirs)})
    (run / "model.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="instead of holding a tokenizer"):
        models.load(run)
    assert_untouched(marker)


def test_names_of_backbones_are_only_names_once_a_model_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources stay in model.json for the reader; loading asks neither the disk nor the hub for them."""
    run = tmp_path / "run"
    llama = language_model(replace(SMALL, vocab_size=WORDS.vocab_size)).config.to_json_string()
    named = LanguageConfig(source="someone/llm", architecture=llama)
    model = models.model_of(FrozenConfig())(FrozenConfig(vision=TOWER, language=named, vocab_size=WORDS.vocab_size), WORDS)
    models.save(model, run)
    monkeypatch.setattr("models.shared.sources.fetched", lambda *_, **__: pytest.fail("something was fetched"))
    monkeypatch.setattr("models.shared.backbones.fetched", lambda *_, **__: pytest.fail("something was fetched"))
    assert models.load(run).config.language.source == "someone/llm"


def test_perceptual_weights_are_read_for_training_alone(tmp_path: Path) -> None:
    config = models.model_class("vq").Config.tiny()
    run = tmp_path / "run"
    models.save(models.model_of(config)(config, None), run)
    described = json.loads((run / "model.json").read_text())
    described["config"]["perceptual"] = "/somewhere/else.safetensors"
    (run / "model.json").write_text(json.dumps(described))
    with pytest.raises(FileNotFoundError, match="perceptual weights"):
        models.load(run).fetch()
    models.load(run)


def test_yes_at_every_question_runs_nothing(tmp_path: Path) -> None:
    """The command itself, with `yes |` in front."""
    marker = tmp_path / "executed"
    theirs, run = hostile(tmp_path / "theirs", marker), clip_run(tmp_path / "run")
    (run / "tokenizer.json").write_text(json.dumps({"tokenizer": str(theirs)}))
    (run / "recipe.json").write_text(json.dumps({"name": "clip", "data": str(tmp_path)}))
    done = command("eval.run", str(run), typed="y\n" * 1000)
    assert done.returncode
    assert "run the custom code" not in done.stdout + done.stderr
    assert "instead of holding a tokenizer" in done.stderr
    assert not marker.exists()


# --------------------------------------------------------------------------------------------------- the whole tree


def test_every_call_that_could_run_code_is_told_not_to() -> None:
    """`from_pretrained` and `from_config` of transformers, and what unpickles, wherever they are named."""
    fetches, unpickles = ("from_pretrained", "from_config"), ("get_state_dict", "load_state_dict_from_url")
    options = ("allow_pickle", "trust_remote_code", "weights_only")
    found = 0
    for path in sorted(file for folder in ("data", "models", "eval", "recipes", "tests") for file in (ROOT / folder).rglob("*.py")):
        text = path.read_text()
        if path == Path(__file__) or not any(word in text for word in (*fetches, *unpickles, *options)):
            continue
        nodes = list(ast.walk(ast.parse(text)))
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        told = {id(each) for call in calls if _says(call, "trust_remote_code", False) for each in _of(call)}
        safe = {id(each) for call in calls if _says(call, "weights_only", True) for each in _of(call)}
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr in fetches:
                found += 1
                assert id(node) in told, f"{path}:{node.lineno}: pass trust_remote_code=False"
            if isinstance(node, ast.Attribute) and node.attr in unpickles:
                found += 1
                assert id(node) in safe, f"{path}:{node.lineno}: pass weights_only=True"
            if isinstance(node, ast.keyword) and node.arg in options:
                expected = node.arg == "weights_only"
                assert isinstance(node.value, ast.Constant), f"{path}:{node.lineno}"
                assert node.value.value is expected, f"{path}:{node.lineno}: {node.arg}={node.value.value}"
    assert found > 5


def _says(call: ast.Call, name: str, value: bool) -> bool:
    return any(
        keyword.arg == name and isinstance(keyword.value, ast.Constant) and keyword.value.value is value for keyword in call.keywords
    )


def _of(call: ast.Call) -> list[ast.expr]:
    """What a call calls: the function itself, or one among its arguments."""
    return [call.func, *call.args]
