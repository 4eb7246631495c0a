"""Chat templates that behave as those of known families do, each written for these tests, as short
as its behaviour allows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# An empty thought before the last answer, none before earlier ones; answers lose their line feeds.
QWEN3 = (
    "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0"
    " %}{%- endif %}{%- endfor %}\n{%- for m in messages %}\n    {%- if m.role == 'assistant' %}\n        {%- set"
    " thought, said = '', m.content %}\n        {%- if '</think>' in m.content %}\n            {%- set thought ="
    " m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}\n            {%- set said ="
    " m.content.split('</think>')[-1] %}\n        {%- endif %}\n        {{- '<|im_start|>assistant\\n' }}\n        {%-"
    " if loop.index0 > ns.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}\n        {{-"
    " said.strip('\\n') + '<|im_end|>\\n' }}\n    {%- else %}\n        {{- '<|im_start|>' + m.role + '\\n' + m.content"
    " + '<|im_end|>\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}{{-"
    " '<|im_start|>assistant\\n' }}{%- endif %}\n"
)
# A prompt that ends in an opened thought, which a finished answer does not have.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}{{"
    " '<|User|>' + m.content }}{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif"
    " %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
DEEPSEEK_V3 = R1.replace("<think>\\n", "")
# Turns alternate, no system role, a space before answers.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{"
    " raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if m.role == 'user'"
    " %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif"
    " %}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}{{ '<start_of_turn>' + role"
    " + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<start_of_turn>model\\n' }}{% endif %}"
)
# Passes over a system message in silence.
SILENT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'Q: ' + m.content + '\\n' }}{% elif m.role == 'assistant' %}{{"
    " 'A: ' + m.content + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)
# The day's date, and answers trimmed.
LLAMA3 = (
    "{{- bos_token }}\n{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string ="
    " strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}\n{%- if"
    " messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:]"
    " %}{%- else %}{%- set system = '' %}{%- endif %}\n{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date:"
    " ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}\n{%- for m in messages %}{{- '<|start_header_id|>' + m.role"
    " + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{%- endfor %}\n{%- if add_generation_prompt %}{{-"
    " '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}\n"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Channels; the last answer is in 'final'. The date without a way round it.
GPT_OSS = (
    "{%- macro head() %}{{- 'Current date: ' + strftime_now('%Y-%m-%d') + '\\n' }}{%- endmacro %}{{-"
    " '<|start|>system<|message|>' }}{{- head() }}{{- '<|end|>' }}{%- for m in messages %}{%- if m.role == 'assistant'"
    " %}{%- if loop.last and not add_generation_prompt %}{% generation %}{{-"
    " '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}{% endgeneration %}{%- else %}{{-"
    " '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- elif m.role == 'system'"
    " %}{{- '<|start|>developer<|message|>' + m.content + '<|end|>' }}{%- else %}{{- '<|start|>' + m.role +"
    " '<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{-"
    " '<|start|>assistant' }}{%- endif %}"
)
# Does not ask whether an answer is to follow.
IGNORES = (
    "{% for m in messages %}{{ m.role.upper() + ': ' + m.content + (eos_token if m.role == 'assistant' else '\\n') }}{%"
    " endfor %}"
)
# Jinja's less usual parts: loop controls, filters, tests, slices, namespaces, JSON.
ODD = (
    "{% set ns = namespace(n=0, seen=[]) %}{% for m in messages[::-1] %}{% if loop.index > 3 %}{% break %}{% endif %}{%"
    " if m.role == 'system' %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{% set ns.seen = ns.seen + [m.role]"
    " %}{% endfor %}{{ ns.seen | join(', ') ~ ' ' ~ ns.n * 2 }} {{ messages | tojson(indent=2) }}{{ messages |"
    " map(attribute='role') | list | unique | list }}\n{% for m in messages %}{{ loop.index0 }}{{ '%s|%d' % (m.role,"
    " m.content | length) }}{{ loop.cycle('a', 'b') }}{{ m.content.split(' ')[-1] }}{{ m.get('name', 'none') | upper"
    " }}{% if not loop.last %}; {% endif %}\n{% endfor %}{% macro wrap(text, tag='x') %}<{{ tag }}>{{ text }}</{{ tag"
    " }}>{% endmacro %}{{ wrap('a', tag='b') }}{{ dict(a=1) }}{{ range(3) | list }}{{ none }}{{ missing }}{{ messages |"
    " selectattr('role', 'equalto', 'user') | list | length }}{{ 7 // 2 }}{{ 7 % 4 }}{{ -2 ** 2 }}{{ 'ab' * 2 }}{{ [1,"
    " 2] + [3] }}{{ tools is none }}{{ '{:>4}'.format('x') }}\n"
)

TEMPLATES = {
    "chatml": CHATML,
    "qwen3": QWEN3,
    "r1": R1,
    "deepseek": DEEPSEEK_V3,
    "mistral": MISTRAL,
    "gemma2": GEMMA2,
    "silent": SILENT,
    "llama3": LLAMA3,
    "phi3": PHI3,
    "gpt-oss": GPT_OSS,
    "ignores": IGNORES,
}


def with_template(folder: Path, template: Any) -> Any:
    """The tokenizer in a folder with a chat template, or several."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = template
    return tokenizer
