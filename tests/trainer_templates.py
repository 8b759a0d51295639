"""Chat templates in the manner of twelve families, with generation tags; what they have in common with the published
ones is how they treat turns, not their words."""

_ANSWER = "{% if m['role'] == 'assistant' %}{% generation %}"
_REST = "{% endgeneration %}{% else %}"
_HEADER = "{% if add_generation_prompt %}"

TEMPLATES = {
    "llama": (
        "{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n"
        + _ANSWER + "{{ m['content'] | trim }}<|eot|>" + _REST
        + "{{ m['content'] | trim }}<|eot|>{% endif %}{% endfor %}"
        + _HEADER + "<|head|>assistant<|/head|>\n\n{% endif %}"
    ),
    "qwen": (
        "{% if tools %}<|start|>system\n# Tools\n{% for t in tools %}{{ t | tojson }}\n"
        "{% endfor %}<|end|>\n{% endif %}"
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}"
        "{% endif %}{% endfor %}{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{% if loop.index0 > ns.last %}"
        "<think>\n{{ (m.reasoning_content or '') | trim }}\n</think>\n\n{% endif %}"
        "{{ m.content or '' }}{% for c in m.tool_calls or [] %}\n<call>{{ c.function.name }} "
        "{{ c.function.arguments | tojson }}</call>{% endfor %}<|end|>{% endgeneration %}{% else %}"
        "{{ m.content }}<|end|>{% endif %}\n{% endfor %}" + _HEADER + "<|start|>assistant\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
        "{% elif m['role'] == 'assistant' %}{% generation %} {{ m['content'] }}{{ eos_token }}{% endgeneration %}"
        "{% else %}[SYS]{{ m['content'] }}[/SYS]{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% set ns = namespace(first='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{% set ns.first = m['content'] + '\n\n' %}{% else %}<turn>"
        "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n" + _ANSWER + "{{ m['content'] | trim }}</turn>\n"
        + _REST + "{{ ns.first + m['content'] | trim }}</turn>\n{% set ns.first = '' %}"
        "{% endif %}{% endif %}{% endfor %}"
        + _HEADER + "<turn>model\n{% endif %}"
    ),
    "phi": (
        "{% for m in messages %}<|{{ m['role'] }}|>\n" + _ANSWER + "{{ m['content'] }}<|end|>\n" + _REST
        + "{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}" + _HEADER + "<|assistant|>\n{% endif %}"
    ),
    "smollm": (
        "{% if messages[0]['role'] != 'system' %}<|start|>system\nYou are a small assistant.<|end|>\n{% endif %}"
        "{% for m in messages %}<|start|>{{ m['role'] }}\n" + _ANSWER + "{{ m['content'] }}<|end|>" + _REST
        + "{{ m['content'] }}<|end|>{% endif %}\n{% endfor %}" + _HEADER + "<|start|>assistant\n{% endif %}"
    ),
    "chatml": (
        "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}" + _ANSWER
        + "{{ m['content'] + '<|end|>' }}" + _REST
        + "{{ m['content'] + '<|end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        + _HEADER + "{{ '<|start|>assistant\n' }}{% endif %}"
    ),
    "deepseek": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
        "{% elif m['role'] == 'assistant' %}<|assistant|>{% generation %}{{ m['content'].split('</think>')[-1] }}"
        "{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
        + _HEADER + "<|assistant|>{% endif %}"
    ),
    "gpt_oss": (
        "<|start|>system\nDate: DAY<|end|>{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% if m.thinking %}<|start|>assistant{% generation %}<|head|>analysis<|/head|>{{ m.thinking }}<|end|>"
        "{% endgeneration %}{% endif %}<|start|>assistant{% generation %}<|head|>final<|/head|>{{ m.content }}<|eot|>"
        "{% endgeneration %}{% else %}<|start|>{{ m.role }}<|/head|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        + _HEADER + "<|start|>assistant{% endif %}"
    ),
    "granite": (
        "{% if messages[0]['role'] != 'system' %}<|head|>system<|/head|>Today is DAY.<eos>\n{% endif %}"
        "{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>" + _ANSWER + "{{ m['content'] }}<eos>" + _REST
        + "{{ m['content'] }}<eos>{% endif %}\n{% endfor %}" + _HEADER + "<|head|>assistant<|/head|>{% endif %}"
    ),
    "command_r": (
        "{{ bos_token }}{% for m in messages %}<turn>{{ {'user': '<|user|>', 'assistant': '<|assistant|>', "
        "'system': '<|system|>'}[m['role']] }}" + _ANSWER + "{{ m['content'] | trim }}</turn>" + _REST
        + "{{ m['content'] | trim }}</turn>{% endif %}{% endfor %}" + _HEADER + "<turn><|assistant|>{% endif %}"
    ),
    "plain": (
        "{% for m in messages %}{{ {'user': 'User', 'assistant': 'Assistant', 'system': 'System'}[m['role']] }}: "
        + _ANSWER + "{{ m['content'] }}{{ eos_token }}" + _REST + "{{ m['content'] }}\n{% endif %}{% endfor %}"
        + _HEADER + "Assistant: {% endif %}"
    ),
}  # fmt: skip
"""Name -> template; DAY stands for a date."""


def without_tags(template: str) -> str:
    """The same template as most models come with it."""
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
