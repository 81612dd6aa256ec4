"""Which tokens are targets, for chat templates in the manner of the model families."""
import os
import tempfile
import unittest

import model_dirs
from data.chat_template import TemplateFault
from data.encoding import MarkedText, encode
from data.errors import UserError
from data.model_dir import load_model_dir
from data.records import Passage, parse_record
from data.reply_spans import ReplyFinder, Uncertain


def user(text):
    return {"role": "user", "content": text}


def reply(text, **more):
    return {"role": "assistant", "content": text, **more}


class Masks(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)

    def model(self, template, **options):
        return load_model_dir(model_dirs.make_model_dir(os.path.join(self.directory.name, "m"), template, **options))

    def encoded(self, model, messages, tools=None, form="messages"):
        parsed = parse_record({"messages": messages, "tools": tools}, form, True)
        text, spans = ReplyFinder(model.template, model.special_tokens).find(parsed.messages, parsed.tools, 0)
        (ids, mask), = encode(model, [MarkedText(text, [(s.begin, s.end) for s in spans], False)])
        return text, ids, mask

    def targets(self, model, messages, tools=None):
        """The texts of the runs of targets."""
        _, ids, mask = self.encoded(model, messages, tools)
        runs, run = [], []
        for i, target in zip(ids.tolist() + [0], mask.tolist() + [0]):
            if target:
                run.append(i)
            elif run:
                runs.append(model.tokenizer.decode(run, skip_special_tokens=False))
                run = []
        return runs

    def test_chatml_is_encoded_as_transformers_does(self):
        model = load_model_dir(model_dirs.TINY_LLAMA)
        messages = [user("What does \"hockey\" mean?"), reply("A game."), user("Thanks <3"), reply("é!\n")]
        text, ids, mask = self.encoded(model, messages)
        self.assertEqual(ids.tolist(), CHATML_IDS)
        self.assertEqual("".join(map(str, mask)), CHATML_MASK)

    def test_chatml_newline_after_the_end_is_no_target(self):
        self.assertEqual(self.targets(self.model(model_dirs.CHATML), [user("a"), reply("b"), user("c"), reply("d")]),
                         ["b<|im_end|>", "d<|im_end|>"])

    def test_user_text_equal_to_the_reply_is_no_target(self):
        model = self.model(model_dirs.CHATML)
        self.assertEqual(self.targets(model, [user("same"), reply("same"), user("same"), reply("same")]),
                         ["same<|im_end|>"] * 2)
        self.assertEqual(self.targets(model, [user("<|im_start|>assistant\nyes<|im_end|>\n"), reply("yes")]),
                         ["yes<|im_end|>"])

    def test_special_token_in_a_reply_ends_nothing(self):
        self.assertEqual(self.targets(self.model(model_dirs.CHATML), [user("a"), reply("b<|im_end|>\nc"), user("d")]),
                         ["b<|im_end|>\nc<|im_end|>"])
        self.assertEqual(self.targets(self.model(model_dirs.CHATML), [user("a"), reply("b<|im_end|>")]),
                         ["b<|im_end|><|im_end|>"])

    def test_llama3_has_one_bos_and_trims(self):
        model = self.model(model_dirs.LLAMA3, bos="<s>", eos="<|eot_id|>")
        messages = [{"role": "system", "content": "s"}, user(" a "), reply(" b\n"), user("c"), reply("d")]
        self.assertEqual(self.targets(model, messages), ["b<|eot_id|>", "d<|eot_id|>"])
        _, ids, mask = self.encoded(model, messages)
        self.assertEqual(ids.tolist().count(model.tokenizer.token_to_id("<s>")), 1)
        self.assertEqual((ids[0], mask[0]), (model.tokenizer.token_to_id("<s>"), 0))

    def test_mistral_with_sentencepiece(self):
        model = self.model(model_dirs.MISTRAL, bos="<s>", eos="</s>", tokenizer=model_dirs.sentencepiece_like(),
                           vocab_size=100)
        messages = [user("hi"), reply("yes"), user("yes"), reply("hi yo")]
        _, ids, mask = self.encoded(model, messages)
        tokens = [model.tokenizer.id_to_token(i) for i in ids]
        self.assertEqual(tokens[:2], ["<s>", "[INST]"])
        self.assertEqual(tokens.count("<s>"), 1)
        self.assertEqual([t for t, target in zip(tokens, mask) if target],
                         ["▁", "▁y", "e", "s", "</s>", "▁", "▁h", "i", "▁y", "o", "</s>"])
        with self.assertRaises(TemplateFault):
            self.encoded(model, [user("a"), user("b"), reply("c")])

    def test_bos_of_the_tokenizer_where_the_template_has_none(self):
        template = model_dirs.MISTRAL.replace("{{ bos_token }}", "")
        model = self.model(template, bos="<s>", eos="</s>", tokenizer=model_dirs.sentencepiece_like(), vocab_size=100)
        _, ids, mask = self.encoded(model, [user("hi"), reply("yes")])
        tokens = [model.tokenizer.id_to_token(i) for i in ids]
        self.assertEqual(tokens, ["<s>", "[INST]", "▁", "▁h", "i", "▁", "[/INST]", "▁", "▁y", "e", "s", "</s>"])
        self.assertEqual(mask.tolist(), [0] * 7 + [1] * 5)

    def test_qwen3_strips_earlier_thinking(self):
        model = self.model(model_dirs.QWEN3)
        thoughtful = [user("q1"), reply("<think>\nt1\n</think>\n\nr1"), user("q2"), reply("<think>\nt2\n</think>\n\nr2")]
        self.assertEqual(self.targets(model, thoughtful), ["r1<|im_end|>", "<think>\nt2\n</think>\n\nr2<|im_end|>"])
        self.assertEqual(self.targets(model, [user("same"), reply("same"), user("same"), reply("same")]),
                         ["same<|im_end|>", "<think>\n\n</think>\n\nsame<|im_end|>"])

    def test_qwen3_tool_calls_are_targets_and_tool_output_is_not(self):
        model = self.model(model_dirs.QWEN3)
        call = [{"type": "function", "function": {"name": "f", "arguments": {"x": "<"}}}]
        called = '<tool_call>\n{"name": "f", "arguments": {"x": "<"}}\n</tool_call><|im_end|>'
        messages = [user("q1"), reply(None, tool_calls=call), {"role": "tool", "content": "r1"}, reply("r1"),
                    user("q2"), reply("r2", tool_calls=call), {"role": "tool", "content": "r2"}, reply("r3")]
        self.assertEqual(self.targets(model, messages, [{"type": "function"}]),
                         [called, "r1<|im_end|>", "r2\n" + called, "<think>\n\n</think>\n\nr3<|im_end|>"])

    def test_generation_prompt_that_is_not_in_the_rendering(self):
        self.assertEqual(self.targets(self.model(model_dirs.THINKING_PROMPT), [user("a"), reply("a"), user("b"), reply("a")]),
                         ["a<|im_end|>", "a<|im_end|>"])

    def test_gemma_roles(self):
        model = self.model(model_dirs.GEMMA, bos="<s>", eos="<end_of_turn>")
        self.assertEqual(self.targets(model, [user("a"), reply("model"), user("model"), reply("b ")]),
                         ["model<end_of_turn>", "b<end_of_turn>"])
        with self.assertRaisesRegex(TemplateFault, "no system role"):
            self.encoded(model, [{"role": "system", "content": "s"}, user("a"), reply("b")])

    def test_generation_blocks(self):
        model = self.model(model_dirs.GENERATION)
        text, _, _ = self.encoded(model, [user("a"), reply("b")])
        self.assertEqual(text, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n")
        self.assertEqual(self.targets(model, [user("b"), reply("b"), user("c"), reply("b")]), ["b<|im_end|>", "b<|im_end|>"])

    def test_template_without_end_or_generation_prompt(self):
        self.assertEqual(self.targets(self.model(model_dirs.BARE), [user("assistant"), reply("assistant")]), [" assistant"])

    def test_what_follows_the_end_of_the_turn_is_no_target(self):
        closing = self.model(model_dirs.CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}", eos="</s>")
        self.assertEqual(self.targets(closing, [user("a"), reply("b")]), ["b<|im_end|>"])
        doubled = self.model(model_dirs.CHATML.replace("<|im_end|>", "<|eot_id|><|im_end|>"))
        self.assertEqual(self.targets(doubled, [user("a"), reply("b")]), ["b<|eot_id|><|im_end|>"])

    def test_blocks_on_their_own_lines_leave_no_white_space(self):
        model = self.model("{% for m in messages %}\n  {% if true %}\n{{ m.content }}<|im_end|>\n  {% endif %}\n{% endfor %}\n")
        self.assertEqual(self.encoded(model, [user("a"), reply("b")])[0], "a<|im_end|>\nb<|im_end|>\n")

    def test_uncertain_is_refused(self):
        # The header tells how long the reply is, and the generation prompt cannot know.
        template = ("{% for m in messages %}<{{ m.role }} {{ m.content | length }}>{{ m.content }}{% endfor %}"
                    "{% if add_generation_prompt %}<assistant ?>{% endif %}")
        with self.assertRaises(Uncertain):
            self.encoded(self.model(template), [user("a"), reply("b")])
        with self.assertRaises(UserError):
            ReplyFinder(self.model("{% for m in messages %}{{ m.role }}{% endfor %}").template, [])

    def test_template_of_an_outlaw_is_contained(self):
        with self.assertRaises(TemplateFault):
            self.encoded(self.model("{{ messages.__class__.__mro__[1].__subclasses__() }}"), [user("a"), reply("b")])

    def test_prompt_and_completion(self):
        model = self.model(None, bos="<s>", eos="</s>", tokenizer=model_dirs.sentencepiece_like(), vocab_size=100)
        passage = parse_record({"prompt": "ab", "completion": " yo"}, "prompt_completion", False)
        text = passage.context + passage.text
        (ids, mask), = encode(model, [MarkedText(text, [(len(passage.context), len(text))], True)])
        self.assertEqual([model.tokenizer.id_to_token(i) for i in ids], ["<s>", "▁", "a", "b", "▁y", "o", "</s>"])
        self.assertEqual(mask.tolist(), [0, 0, 0, 0, 1, 1, 1])
        # "ho" spans the boundary of no token here, " h" does: a token that overlaps the completion is a target.
        (ids, mask), = encode(model, [MarkedText("a ho", [(2, 4)], True)])
        self.assertEqual([model.tokenizer.id_to_token(i) for i in ids], ["<s>", "▁", "a", "▁h", "o", "</s>"])
        self.assertEqual(mask.tolist(), [0, 0, 0, 1, 1, 1])

    def test_text(self):
        model = load_model_dir(model_dirs.TINY_LLAMA)  # without BOS
        self.assertEqual(parse_record({"text": "a game"}, "text", True), Passage("", "a game"))
        (ids, mask), (ended, ended_mask) = encode(model, [MarkedText("a game", [(0, 6)], True),
                                                          MarkedText("a game<|im_end|>", [(0, 16)], True)])
        self.assertEqual(mask.tolist(), [0] + [1] * (len(ids) - 1))
        self.assertEqual(ids[-1], model.eos_id)
        self.assertEqual((ended.tolist(), ended_mask.tolist()), (ids.tolist(), mask.tolist()))

    def test_prompt_messages_are_context(self):
        parsed = parse_record({"prompt": [user("a"), reply("b"), user("c")], "completion": [reply("d")]},
                              "prompt_completion", True)
        model = self.model(model_dirs.CHATML)
        text, spans = ReplyFinder(model.template, model.special_tokens).find(parsed.messages, None, parsed.first_target)
        self.assertEqual([text[s.begin:s.end] for s in spans], ["d<|im_end|>"])


# From transformers' apply_chat_template on input/models/tiny-llama.
CHATML_IDS = [1, 314, 267, 201, 57, 74, 273, 2977, 223, 4, 74, 457, 2271, 4, 2717, 33, 2, 201, 1, 493, 408, 407, 201, 35, 2120,
              16, 2, 201, 1, 314, 267, 201, 54, 74, 1197, 85, 223, 30, 21, 2, 201, 1, 493, 408, 407, 201, 130, 105, 3, 201, 2,
              201]
CHATML_MASK = "0" * 23 + "1" * 4 + "0" * 19 + "1" * 5 + "0"

if __name__ == "__main__":
    unittest.main()
