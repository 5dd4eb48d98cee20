"""Chat formats of eleven families as templates, and the texts that they stand for, written out by hand.

Every text is of a system turn (where the family has one), a question, an answer, and a second question. `prompt` ends where
the model has to write, `learned` is what stands there in a finished conversation.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A template, the tokens that it writes as marks, the one that ends a text, and what it writes."""

    template: str
    marks: tuple[str, ...]
    eos: str
    prompt: str
    learned: str
    end: str
    bos: str = "<s>"
    system: bool = True
    words: tuple[str, ...] = ()  # single tokens that are no marks


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_3 = (
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > last.user %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set about = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set about = '' %}{% set turns = messages %}{% endif %}{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token }}[INST] {{ (about if loop.first else '') + m.content.strip() }} [/INST]"
    "{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|><|{{ {'system': 'SYSTEM', 'user': 'USER', "
    "'assistant': 'CHATBOT'}[m.role] }}_TOKEN|>{{ m.content.strip() }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "<|User|>{{ m.content }}{% else %}<|Assistant|>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
TULU = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% if m.role == 'assistant' and loop.last %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

FAMILIES = {
    "ChatML, Qwen 2": Family(
        CHATML,
        ("<|im_start|>", "<|im_end|>"),
        "</s>",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYo.<|im_end|>\n"
        "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n",
        "Fine.<|im_end|>\n",
        "<|im_end|>",
    ),
    "Qwen 3": Family(
        QWEN_3,
        ("<|im_start|>", "<|im_end|>"),
        "</s>",
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nYo.<|im_end|>\n"
        "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n",
        "<think>\n\n</think>\n\nFine.<|im_end|>\n",
        "<|im_end|>",
        words=("<think>", "</think>"),
    ),
    "Llama 2": Family(
        LLAMA_2,
        (),
        "</s>",
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi? [/INST] Yo. </s><s>[INST] Well? [/INST]",
        " Fine. </s>",
        "</s>",
    ),
    "Llama 3": Family(
        LLAMA_3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "</s>",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nHi?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYo.<|eot_id|><|start_header_id|>"
        "user<|end_header_id|>\n\nWell?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "Fine.<|eot_id|>",
        "<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    "Mistral": Family(
        MISTRAL,
        ("[INST]", "[/INST]"),
        "</s>",
        "<s>[INST] Hi?[/INST] Yo.</s>[INST] Well?[/INST]",
        " Fine.</s>",
        "</s>",
        system=False,
    ),
    "Gemma": Family(
        GEMMA,
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        "</s>",
        "<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\nYo.<end_of_turn>\n<start_of_turn>user\nWell?"
        "<end_of_turn>\n<start_of_turn>model\n",
        "Fine.<end_of_turn>\n",
        "<end_of_turn>",
        bos="<bos>",
        system=False,
    ),
    "Phi 3": Family(
        PHI_3,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "</s>",
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi?<|end|>\n<|assistant|>\nYo.<|end|>\n<|user|>\nWell?<|end|>\n"
        "<|assistant|>\n",
        "Fine.<|end|>\n</s>",
        "<|end|>",
    ),
    "Zephyr": Family(
        ZEPHYR,
        (),
        "</s>",
        "<|system|>\nBe brief.</s>\n<|user|>\nHi?</s>\n<|assistant|>\nYo.</s>\n<|user|>\nWell?</s>\n<|assistant|>\n",
        "Fine.</s>\n",
        "</s>",
    ),
    "Command R": Family(
        COMMAND_R,
        (
            *("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
            *("<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        ),
        "<|END_OF_TURN_TOKEN|>",
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|>"
        "<|USER_TOKEN|>Hi?<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Yo.<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Well?<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "Fine.<|END_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        bos="<BOS_TOKEN>",
    ),
    "DeepSeek R1": Family(  # its generation prompt opens a thought that its answers do not have
        DEEPSEEK_R1,
        ("<|User|>", "<|Assistant|>"),
        "</s>",
        "<s>Be brief.<|User|>Hi?<|Assistant|>Yo.</s><|User|>Well?",
        "<|Assistant|>Fine.</s>",
        "</s>",
        words=("<think>",),
    ),
    "Tulu, OLMo": Family(
        TULU,
        (),
        "</s>",
        "<s><|system|>\nBe brief.\n<|user|>\nHi?\n<|assistant|>\nYo.\n<|user|>\nWell?\n<|assistant|>\n",
        "Fine.</s>",
        "</s>",
    ),
}
