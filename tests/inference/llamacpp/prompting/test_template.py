from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import TemplateError
from inference.llamacpp.prompting.template import SOURCE_MAX_CHARS, ChatTemplate
from inference.requests import ChatMessage, ChatPrompt

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA_3_LIKE = """\
{%- set ns = namespace(system="") %}
{%- if messages[0].role == "system" %}
    {%- set ns.system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- if ns.system or tools is not none %}
    {{- "<|header|>system<|end_header|>\n\n" ~ ns.system ~ "<|eot|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ["user", "assistant"] %}
        {{- raise_exception("Unknown role: " + message.role) }}
    {%- endif %}
    {{- "<|header|>" + message["role"] + "<|end_header|>\n\n" + message["content"] | trim }}
    {{- "<|eot|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|header|>assistant<|end_header|>\n\n" }}
{%- endif %}
"""

MISTRAL_LIKE = """\
{%- if messages[0]["role"] == "system" -%}
    {%- set system_message, turns = messages[0]["content"], messages[1:] -%}
{%- else -%}
    {%- set turns = messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for message in turns -%}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) -%}
        {{- raise_exception("Roles must alternate: user, assistant, user, ...") -}}
    {%- endif -%}
    {%- if message["role"] == "user" -%}
        {%- if loop.last and system_message is defined -%}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" -}}
        {%- else -%}
            {{- "[INST] " + message["content"] + "[/INST]" -}}
        {%- endif -%}
    {%- else -%}
        {{- " " + message["content"] + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""

REASONING_LIKE = """\
{%- macro turn(role, text, last=false) -%}
    {{- "<|" ~ role ~ "|>" ~ text ~ ("" if last else "<|/|>") -}}
{%- endmacro -%}
{%- set ns = namespace(last_user=-1) -%}
{%- for message in messages -%}
    {%- if message.role == "user" -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- if message.content is not string -%}{%- continue -%}{%- endif -%}
    {%- set text = message.content -%}
    {%- if message.role == "assistant" and "</think>" in text and loop.index0 < ns.last_user -%}
        {%- set text = text.split("</think>")[-1].lstrip("\n") -%}
    {%- endif -%}
    {%- if message.role == "assistant" -%}
        {%- generation -%}{{- turn("assistant", text) -}}{%- endgeneration -%}
    {%- else -%}
        {{- turn(message.role, text, last=loop.last) -}}
    {%- endif -%}
{%- endfor -%}
"""


def compiled(source: str, *, seconds: float = 5.0, chars: int = 100_000) -> ChatTemplate:
    return ChatTemplate(source, bos="<s>", eos="</s>", limit_seconds=seconds, max_chars=chars)


def prompt(*turns: tuple[str, str], **fields: Any) -> ChatPrompt:
    messages = tuple(ChatMessage(role=role, content=content) for role, content in turns)
    return ChatPrompt(messages=messages, **fields)


def rendered(source: str, *turns: tuple[str, str], chars: int = 100_000, **kwargs: Any) -> str:
    return compiled(source, chars=chars, **kwargs).render(prompt(*turns))


def failure(source: str, *turns: tuple[str, str], **kwargs: Any) -> str:
    """The message of the error that building and rendering `source` must give."""
    with pytest.raises(TemplateError) as caught:
        rendered(source, *turns, **kwargs)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_chatml() -> None:
    assert rendered(CHATML, ("system", "Be brief."), ("user", "¿Qué? 🙂")) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n¿Qué? 🙂<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    closed = prompt(("user", "x"), add_generation_prompt=False)
    assert compiled(CHATML).render(closed) == "<|im_start|>user\nx<|im_end|>\n"


def test_llama_3_like() -> None:
    assert rendered(LLAMA_3_LIKE, ("system", " S "), ("user", " hi "), ("assistant", "yo")) == (
        "<s><|header|>system<|end_header|>\n\nS<|eot|>"
        "<|header|>user<|end_header|>\n\nhi<|eot|>"
        "<|header|>assistant<|end_header|>\n\nyo<|eot|>"
        "<|header|>assistant<|end_header|>\n\n"
    )
    assert rendered(LLAMA_3_LIKE, ("user", "hi")).startswith("<s><|header|>user")


def test_mistral_like() -> None:
    turns = (("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert rendered(MISTRAL_LIKE, *turns) == "<s>[INST] a[/INST] b</s>[INST] S\n\nc[/INST]"


def test_macros_namespaces_loop_controls_and_the_generation_tag() -> None:
    turns = (
        ("user", "a"),
        ("assistant", "<think>hm</think>\nb"),
        ("user", "c"),
        ("assistant", "<think>keep</think>d"),
    )
    assert rendered(REASONING_LIKE, *turns) == (
        "<|user|>a<|/|><|assistant|>b<|/|><|user|>c<|/|><|assistant|><think>keep</think>d<|/|>"
    )


@pytest.mark.model
def test_the_default_models_own_template(default_model_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(default_model_path).encode(), params)
    source = llama_cpp.llama_model_chat_template(model, None).decode()
    llama_cpp.llama_model_free(model)
    shown = rendered(source, ("user", "hé 🙂"))
    assert shown.startswith("<|im_start|>system\n")
    assert shown.endswith("<|im_start|>user\nhé 🙂<|im_end|>\n<|im_start|>assistant\n")


@given(st.lists(st.tuples(st.text(max_size=10), st.text(max_size=30)), max_size=5))
def test_any_text_goes_through_unchanged(turns: list[tuple[str, str]]) -> None:
    source = "{% for m in messages %}{{ m.role }}\x00{{ m.content }}\x00{% endfor %}"
    assert rendered(source, *turns) == "".join(f"{role}\0{text}\0" for role, text in turns)


def test_name_is_there_only_when_it_was_given() -> None:
    source = "{% for m in messages %}{{ m.name if m.name is defined else '-' }}{% endfor %}"
    messages = (
        ChatMessage(role="user", content="", name="Ada"),
        ChatMessage(role="user", content=""),
    )
    assert compiled(source).render(ChatPrompt(messages=messages)) == "Ada-"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{{ {'a': '<é>', 'b': [1, none]} | tojson }}", '{"a": "<é>", "b": [1, null]}'),
        ("{{ [1, 2] | tojson(indent=2) }}", "[\n  1,\n  2\n]"),
        ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":2,"b":1}'),
        ("{{ 'a-b-c'.split('-') | join('+') }}", "a+b+c"),
        ("{{ ', '.join(['x', 'y']) }}", "x, y"),
        ("{{ messages | map(attribute='role') | join('/') }}", "user"),
        ("{{ messages | join('/', attribute='content') }}", "hi"),
        ("{{ 'aXa' | replace('X', 'yy') }}{{ 'aXa'.replace('a', '') }}", "ayyaX"),
        ("{{ 'ab' | indent(2, first=true) }}", "  ab"),
        ("{{ '%s and %03d' % ('x', 7) }}{{ '%d%%' | format(5) }}", "x and 0075%"),
        ("{{ '{} {x:>3}'.format(1, x=2) }}", "1   2"),
        ("{{ 'x' ~ 1 ~ none ~ missing }}", "x1None"),
        ("{{ [1, 2] | sum }} {{ 2.567 | round(1) }} {{ 2 ** 10 }} {{ 7 % 4 }}", "3 2.6 1024 3"),
        ("{{ 'abcd'[1:3] }}{{ 'abcd'[::-1] }}{{ 'ab'[0] }}{{ [1, 2][1:] }}", "bcdcbaa[2]"),
        ("{{ 'ab' * 2 }}{{ [1] + [2] }}{{ [0] * 3 }}", "abab[1, 2][0, 0, 0]"),
        ("{{ '<b>' | e }}{{ '<b>' | safe }}", "&lt;b&gt;<b>"),
        ("{{ 'x'.ljust(3) }}|{{ 'A'.lower() }}{{ '\n a '.strip() }}", "x  |aa"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% autoescape true %}{{ '{}'.format('<') }}{% endautoescape %}", "&lt;"),
        ("{{ tools is none }} {{ documents is none }} {{ bos_token }}{{ eos_token }}", None),
    ],
)
def test_what_templates_use(source: str, shown: str | None) -> None:
    assert rendered(source, ("user", "hi")) == (shown or "True True <s></s>")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') | attr('__mro__') }}",
        "{{ ''.format.__globals__ }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ '{0[__class__]}'.format('') }}",
        "{{ '{a.__class__}'.format_map({'a': ''}) }}",
        "{% autoescape true %}{% set x %}{0.__class__}{% endset %}{{ x.format(1) }}"
        "{% endautoescape %}",
        "{{ ['{0.__class__}'] | map('format', messages) | first }}{{ cycler.__init__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__self__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ joiner.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__ }}",
        "{{ range.__class__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].pop('role') }}",
        "{{ dict.fromkeys.__self__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'x' as x %}",
        "{% extends 'x' %}",
    ],
)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    assert "passwd" not in failure(source, ("user", "hi"))


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' * 10 ** 12 }}",
        "{{ 10 ** 12 * 'x' }}",
        "{{ [0] * 10 ** 12 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 9 ** 9999 * 9 ** 9999 }}",
        "{% set ns = namespace(x='x' * 1000) %}"
        "{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x' * 1000) %}"
        "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[0] * 1000) %}"
        "{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x' * 1000) %}"
        "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x={}) %}"
        "{% for i in range(60) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}"
        "{{ ns.x | tojson }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '%(x)999999999d' % {'x': 1} }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ ('{0}' * 10000).format('x' * 10000) }}",
        "{{ ('%(x)s' * 10000) % {'x': 'x' * 10000} }}",
        "{{ 'x'.ljust(10 ** 12) }}",
        "{{ 'x'.center(10 ** 12) }}",
        "{{ '1'.zfill(10 ** 12) }}",
        "{% autoescape true %}{% set x %}x{% endset %}{{ x.center(10 ** 12) }}{% endautoescape %}",
        "{{ ('x' * 10000).replace('x', 'y' * 10000) }}",
        "{{ ('x' * 10000) | replace('x', 'y' * 10000) }}",
        "{{ ('x' * 10000) | replace('', 'y' * 10000) }}",
        "{{ ('x' * 10000) | join('y' * 10000) }}",
        "{{ ('x' * 10000).join('y' * 10000) }}",
        "{{ ('\n' * 10000) | indent(1000, blank=true) }}",
        "{{ [1] | tojson(indent=10 ** 12) }}",
        "{{ 1 | round(10 ** 12, 'ceil') }}",
        "{{ strftime_now('%c' * 1000) }}",
        "{% macro m() %}{% for i in range(100000) %}{{ 'x' * 100 }}{% endfor %}{% endmacro %}"
        "{{ m() | length }}",
        "{% set x %}{% for i in range(100000) %}xxxxxxxxxxxx{% endfor %}{% endset %}",
        "{% for i in range(100000) %}{{ 'x' * 100 }}{% endfor %}",
        "{% for i in range(100000) %}{% set x = 'x' * 90000 %}{% endfor %}",
        "{% set x = 'x' * 90000 %}{% for i in range(100000) %}{% set y = x[1:] %}{% endfor %}",
    ],
)
def test_nothing_large_is_ever_built(source: str) -> None:
    assert (
        failure(source, ("user", "hi")) == "The chat template builds more than 100000 characters."
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ (1).to_bytes(10 ** 12) }}",
        "{{ 'a'.translate({97: 'x'}) }}",
        "{{ 'a'.expandtabs(10 ** 12) }}",
        "{{ 'a'.encode('utf-8') }}",
        "{{ range(10 ** 12) | list }}",
        "{{ [[1]] | sum(start=[]) }}",
        "{{ [1] | batch(10 ** 12, 0) | list }}",
        "{{ 'x' | center(10 ** 12) }}",
        "{{ messages | pprint }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ messages[0].content.nope() }}",
        "{{ 1 / 0 }}",
        "{{ range }}",
        "{{ messages | map(attribute='role') }}",
    ],
)
def test_whatever_fails_is_a_template_error(source: str) -> None:
    assert "secret" not in failure(source, ("user", "secret"))


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% for i in range(100000) %}{% if n %}{{ m(n - 1) }}{% endif %}"
        "{% endfor %}{% endmacro %}{{ m(50) }}",
        "{% for i in range(99999) %}{% set x = range(99999) | map('string') | list %}{% endfor %}",
    ],
)
def test_an_endless_rendering_ends_in_time(source: str) -> None:
    assert failure(source, seconds=0.05) == "The chat template ran longer than 0.05 seconds."


def test_the_alarm_is_given_back() -> None:
    rung = threading.Event()
    previous = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    try:
        rendered(CHATML, ("user", "hi"))
        failure(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            seconds=0.01,
        )
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        signal.raise_signal(signal.SIGALRM)
        assert rung.is_set()
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_a_template_can_be_used_again_after_a_failure() -> None:
    template = compiled("{{ messages[0].content * 50000 }}")
    with pytest.raises(TemplateError):
        template.render(prompt(("user", "abc")))
    for _ in range(200):  # more than the budget of one rendering
        assert len(template.render(prompt(("user", "a")))) == 50_000


def test_refusals_quote_the_template_and_never_the_messages() -> None:
    turns = (("assistant", "first"),)
    assert failure(MISTRAL_LIKE, *turns) == (
        "The chat template refused the messages: Roles must alternate: user, assistant, user, ..."
    )
    assert failure(LLAMA_3_LIKE, ("secret", "x")) == "The chat template refused the messages."


def test_failures_name_the_line_and_never_the_messages() -> None:
    source = "line one\n{{ bos_token }}\n{{ messages[0][messages[0].content].x }}"
    assert failure(source, ("user", "secret")) == (
        "The chat template failed at line 3: UndefinedError."
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a\n{% if %}", "line 2"),
        ("{{ x | nope }}", "line 1: No filter named 'nope'"),
        ("{% for x in y %}", "line 1"),
        ("x" * (SOURCE_MAX_CHARS + 1), "too long"),
    ],
)
def test_a_source_that_is_no_template_is_refused_at_once(source: str, text: str) -> None:
    with pytest.raises(TemplateError, match=text) as caught:
        compiled(source)
    assert "/" not in str(caught.value)


def test_only_the_main_thread_renders() -> None:
    template = compiled(CHATML)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(template.render, prompt(("user", "hi")))
        with pytest.raises(RuntimeError, match="main thread"):
            future.result()
