"""The records of instruction tuning: judged by the truth, with histories that are the model's own."""

import types

import numpy as np
import pytest
from PIL import Image

from seedx_lite.cli import main
from seedx_lite.data.drawn import scenes
from seedx_lite.data.instructions import CHAT, HERE, MOST_TURNS, reading_turn
from seedx_lite.data.layout import Layout
from seedx_lite.data.tokenizer import llm_tokenizer
from seedx_lite.evaluation import any_resolution, instructions
from seedx_lite.evaluation.any_resolution import SHARE, measure_grids
from seedx_lite.evaluation.instructions import Instructed, followed, measure_dialogues
from seedx_lite.evaluation.mllm import measure_detection, measure_questions
from seedx_lite.evaluation.records import load_record
from seedx_lite.pipelines.dialogue import reply
from seedx_lite.presets import load_preset
from seedx_lite.world.draw import render
from seedx_lite.world.edits import sample_chain
from seedx_lite.world.language import canonical_caption
from seedx_lite.world.questions import questions
from seedx_lite.world.scene import Scene, Thing

SCENES = scenes("test", 12, size=(32, 32))
SHOWN = [render(scene) for scene in SCENES]
PICTURE = Image.new("RGB", (32, 32))


def test_what_counts_as_followed():
    """Bugs: another wording that counts as wrong; a box of another thing, or one more, that counts as right; a picture
    where words were asked for."""
    scene = Scene((Thing("cat", "red", 0.2, 0.8, 0.3), Thing("ball", "blue", 0.8, 0.8, 0.2)))
    rng = np.random.default_rng(0)
    for form in CHAT:
        turn = None if form == "drawing" else reading_turn(form, scene, rng)
        answer = HERE if turn is None else turn.answer
        assert followed(form, answer, reply(answer, [PICTURE] * (form == "drawing"), PICTURE), scene), form
        assert not followed(form, answer, reply("on on on", [], PICTURE), scene), form
        assert not followed(form, answer, reply(answer, [PICTURE] * (form != "drawing"), PICTURE), scene), form
    said = canonical_caption(scene)
    assert followed("describe", "another wording", reply(said, [], PICTURE), scene)
    assert not followed("describe", said, reply(said.replace("blue", "green"), [], PICTURE), scene)
    both = reading_turn("ground", scene, rng).answer
    cat, ball = (f"{one[: one.index(' ]]') + 3]}" for one in sorted(both.split(" and "), key=lambda one: "ball" in one))
    assert followed("find", cat, reply(cat, [], PICTURE), scene)
    for wrong in (ball, both, cat.replace("<box_end>", "")):
        assert not followed("find", cat, reply(wrong, [], PICTURE), scene)
    assert not followed("ground", both, reply(cat, [], PICTURE), scene)
    crossed = both.replace("cat", "tree").replace("ball", "cat").replace("tree", "ball")
    assert not followed("ground", both, reply(crossed, [], PICTURE), scene)
    turned = " and ".join(reversed(both.partition(", on ")[0].split(" and "))) + both[both.index(", on ") :]
    assert followed("ground", both, reply(turned, [], PICTURE), scene)


class Oracle:
    """Answers every instruction rightly, from what it is shown; notes the histories. wrong: in that turn it fails."""

    def __init__(self, wrong=None):
        self.histories, self.wrong = [], wrong

    def replies(self, histories, seed=0, **settings):
        self.histories.append([list(history) for history in histories])
        return [self._reply(history) for history in histories]

    def _reply(self, history):
        turn, question = (len(history) + 1) // 2, history[-1]["content"][-1]
        pictures = [part for part in history[0]["content"] if isinstance(part, Image.Image)]
        if turn == self.wrong or not pictures:
            return reply("no idea", [], None)
        scene = next(scene for scene, shown in zip(SCENES, SHOWN, strict=True) if shown is pictures[0])
        for form in CHAT:
            for seed in range(400) if form != "drawing" else ():
                told = reading_turn(form, scene, np.random.default_rng(seed))
                if told.question == question:
                    return reply(told.answer, [], pictures[0])
        return reply(HERE, [PICTURE], pictures[0])


def test_dialogues_go_on_with_the_models_own_answers():
    """Bugs: the picture shown again in each turn; the truth in place of what the model has said; turns mixed up."""
    oracle = Oracle(wrong=2)
    told = measure_dialogues(oracle, SCENES, SHOWN, 0, talks=2)
    assert [told[str(turn)]["all"]["mean"] for turn in range(1, MOST_TURNS + 1)] == [1, 0, 1]
    for number, histories in enumerate(oracle.histories):
        assert [len(history) for history in histories] == [2 * number + 1] * 2 * len(SCENES)
        assert all(sum(m["content"][0] is SHOWN[k % 12] for m in h) == 1 for k, h in enumerate(histories))
    assert all(history[3]["content"] == ["no idea"] for history in oracle.histories[2])


def test_questions_and_boxes_by_instruction():
    """Bugs: width and height swapped; a baseline without the picture that sees it."""
    asked = Instructed(Oracle())
    told = measure_questions(asked, SCENES[:4], SHOWN[:4])
    assert told["all"]["model"]["mean"] == 1 and told["all"]["blind"]["mean"] == 0
    found = measure_detection(asked, SCENES[:4], SHOWN[:4])
    assert found["p50"]["mean"] == 1 and found["malformed"]["mean"] == 0


class Counter:
    """Answers with the truth where it sees more than one square; where not, it has no idea."""

    def __init__(self, seedx):
        self.layout = seedx.processor.layout

    def ask(self, pictures, texts):
        truth = {
            render(scene).tobytes(): {question.text: question.answer for question in questions(scene)}
            for size in {picture.size for picture in pictures}
            for scene in scenes("test", SHARE * 2, size=size)
        }
        told = [truth[one.tobytes()][text] for one, text in zip(pictures, texts, strict=True)]
        return [answer if len(self.layout.squares(one)) > 1 else "" for one, answer in zip(pictures, told, strict=True)]

    def boxes(self, pictures, phrases):
        return [((0.0, 0.0, 1.0, 1.0),) if len(self.layout.squares(one)) > 1 else None for one in pictures]


def test_whole_pictures_are_not_cut(monkeypatch):
    """Bugs: the side without squares that has them; a picture of one square that counts as cut; the emptiest scenes."""
    layout = Layout(llm_tokenizer(), 1024, 64, 16, base_resolution=32)

    def around(layout):
        about = {"processor": types.SimpleNamespace(layout=layout), "model": None, "detokenizer": None}
        return types.SimpleNamespace(**about)

    monkeypatch.setattr(any_resolution, "SeedX", lambda model, layout, detokenizer: around(layout))
    told = measure_grids(around(layout), ("2x1",), Counter, count=2)
    for grid, row in told.items():
        assert row["trained"] == (grid in ("1x1", "2x1"))
        assert row["cut"]["all"]["mean"] == (grid != "1x1") and row["whole"]["all"]["mean"] == 0
        assert row["whole"]["malformed"]["mean"] == 1 and row["cut"]["malformed"]["mean"] == (grid == "1x1")
    assert told["2x1"]["things"] > 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("target", ["chat", "edit"])
def test_records(target, runs):
    """Bug: a record that says nothing of its weights, or lacks a baseline."""
    few = ["data.train_scenes=24", "data.second_scenes=24"]
    assert main(["evaluate", target, "--preset", "smoke", "--runs", str(runs), *few]) == 0
    record = load_record(f"sft_{target}", "smoke", 0, runs)
    assert {"vit", "sdxl", "reader", "adapter", "mllm"} <= record["artifacts"].keys() and record["scenes"] == 16
    if target == "chat":
        assert {"1", "2", "3"} == record["followed"].keys() and "f1" in record["drawing"]
        assert all(isinstance(answer, str) for answer in record["first"]) and record["first"]
        grids = record["grids"]
        assert [name for name, told in grids.items() if told["trained"]] == ["1x1", "1x2", "2x1", "3x1"]
        assert [told["squares"] for told in grids.values()] == [1, 3, 4, 3, 4, 5, 5, 5]
        assert {"all", "count", "iou"} <= grids["2x1"]["cut"].keys() & grids["2x1"]["whole"].keys()
        return
    assert record["unchanged"]["success"]["mean"] == 0 == record["unchanged"]["outside_error"]["mean"]
    assert {"ours", "text_to_image", "real", "ceiling", "drawn", "refused"} <= record.keys()
    assert record["tolerance"].keys() == record["first"].keys() and len(record["first"]["thing_iou"]) == 16


class Painter:
    """Edits that are right, but for one step; the de-tokenizer is there for its VAE."""

    def __init__(self, vae, wrong):
        self.detokenizer, self.wrong, self.step, self.given = types.SimpleNamespace(vae=vae), wrong, 0, []

    def edit(self, pictures, instructions, seed, **settings):
        self.step += 1
        self.given.append(pictures)
        edits = [sample_chain(index, 5, "test", size=(32, 32))[self.step - 1] for index in range(len(pictures))]
        assert instructions == [edit.instruction for edit in edits]
        shown = [edit.source if self.step == self.wrong else edit.target for edit in edits]
        return [reply(HERE, [] if self.step == self.wrong else [render(one)], None) for one in shown]


def test_chains_go_on_from_what_was_made(monkeypatch, detokenizer_parts):
    """Bugs: each step starts from the truth; drift measured against the first picture; a step without a picture ends
    the chain."""
    painter, truth = Painter(detokenizer_parts["vae"], wrong=3), {}
    for index in range(4):
        for edit in sample_chain(index, 5, "test", size=(32, 32)):
            truth |= {render(one).tobytes(): one for one in (edit.source, edit.target)}
    empty = Scene(())
    monkeypatch.setattr(
        instructions, "read_scenes", lambda _, some: [truth.get(np.asarray(one).tobytes(), empty) for one in some]
    )
    upon = []  # the condition images of the de-tokenizer alone
    monkeypatch.setattr(
        instructions,
        "reconstruct",
        lambda _, wanted, *a, condition_images, **k: upon.append(condition_images) or wanted,
    )
    rows = instructions.measure_chains(painter, None, load_preset("smoke"), 0, 4)
    assert [row["right"]["mean"] for row in rows] == [1, 1, 0, 1, 1] and rows[2]["drift"]["mean"] > 0
    assert [row["drift"]["mean"] for row in rows if row["step"] != 3] == [
        0
    ] * 4  # it is right again as soon as a step is
    assert [one.tobytes() for one in painter.given[3]] == [one.tobytes() for one in painter.given[2]]
    assert all(row["real"]["mean"] == 1 and row["real_drift"]["mean"] == 0 for row in rows)
    first, second = (sample_chain(0, 5, "test", size=(32, 32))[step].source for step in (0, 1))
    assert [one[0].tobytes() for one in upon[:2]] == [render(first).tobytes(), render(second).tobytes()]
    assert all(row["ceiling"]["mean"] == 0 < row["ceiling_drift"]["mean"] for row in rows)
