"""Chat templates: rendered as their authors meant, and harmless when they mean ill."""

import pytest

from zipcache_rt import ArgumentError, Model, ModelError, templates

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi <b>"}]


def test_the_models_own(smollm2: Model) -> None:
    text = smollm2.apply_chat_template(MESSAGES)
    assert text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\n"
    assert smollm2.apply_chat_template(MESSAGES, add_generation_prompt=False) == text[: -len("<|im_start|>assistant\n")]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m['content'] | trim }};{% endfor %}", "<s>system:Be kind.;user:Hi <b>;"),
        ("{% for m in messages %}{% if loop.last %}{{ loop.index }}/{{ loop.length }}{% endif %}{% endfor %}", "2/2"),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}", "user"),
        ("{{ messages[1] | tojson }}", '{"role": "user", "content": "Hi <b>"}'),
        ("{% macro f(n) %}[{{ n }}]{% endmacro %}{{ f(1) }}{% set ns = namespace(x=2) %}{{ ns.x * 3 }}", "[1]6"),
        ("{% for k, v in messages[0].items() %}{{ k }}{% endfor %}", "rolecontent"),
    ],
)  # fmt: skip
def test_what_templates_use(template: str, expected: str) -> None:
    assert templates.render(template, MESSAGES, bos_token="<s>") == expected


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "no chat template"),
        ("{% for m in messages %}", "malformed"),
        ("{{ messages.__class__.__mro__ }}", "must not"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "must not"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "must not|fails"),
        ("{% set _ = messages.append(1) %}", "must not"),
        ("{{ 'a' * 10000000000 }}", "must not"),
        ("{{ '%1000000000d' % 1 }}", "must not"),
        ("{{ 9 ** 100000000 }}", "must not"),
        ("{{ 'x' | center(10000000000) }}", "malformed|fails"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}", "steps|fails"),
        ("{% for a in range(90000) %}" + "x" * 500 + "{% endfor %}", "characters"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_hostile_templates(template: str | None, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        templates.render(template, MESSAGES)


def test_a_template_may_refuse() -> None:
    with pytest.raises(ArgumentError, match="refuses the conversation: roles must alternate"):
        templates.render("{{ raise_exception('roles must alternate') }}", MESSAGES)
