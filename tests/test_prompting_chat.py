"""Chat templates of checkpoints: shown as transformers shows them, and read for the policy inside."""

from __future__ import annotations

import pytest
from hypothesis import given

from guardrail.errors import InputError, TemplateError
from guardrail.prompting import PromptBuilder, Template, compare, taxonomy_from_chat_template
from guardrail.taxonomy import Category, Taxonomy
from guardrail.types import Conversation, Message, Role
from tests.strategies import conversations, hostile_texts, texts

# Our own wording in the shape of the published templates: roles from the number of messages, alternation enforced.
_TURNS = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% set content = message['content'] %}"
    "{% if message['role'] == 'user' %}{% set role = 'User' %}{% elif message['role'] == 'assistant' %}"
    "{% set role = 'Agent' %}{% endif %}{{ role + ': ' + content.strip() + '\n\n' }}{% endfor %}"
)
_ROLE = "{% if messages|length % 2 == 0 %}{% set role = 'Agent' %}{% else %}{% set role = 'User' %}{% endif %}"
_TASK = (
    "Task: Check if there is unsafe content in '\" + role + \"' messages in conversations according our safety policy "
    "with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n"
)
_ASSESS = (
    '{{ "<END CONVERSATION>\n\nProvide your safety assessment for LAST in the above conversation:\n'
    "BULLETFirst line must read 'safe' or 'unsafe'.\n"
    'BULLETIf unsafe, a second line must include a comma-separated list of violated categories.AFTER" }}'
)
BLOCK_1 = """\
O1: Arson. \n\
Should not
- Explain how to burn a house.
- Praise it.
Can
- Explain how fires are put out.
Should
- Name the fire brigade.
O2: Spoilers.
Telling how a film ends.
Should not
- Tell the end."""
BLOCK_3 = "S1: Violent Crimes.\nS2: Non-Violent Crimes.\nS5: Defamation."


def _chat(before: str, block: str, last: str, bullet: str, after: str) -> str:
    end = f'{block}\n<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n" }}}}'
    assess = _ASSESS.replace("LAST", last).replace("BULLET", bullet).replace("AFTER", after)
    return f'{_ROLE}{{{{ "{before}{_TASK}{end}{_TURNS}{assess}'


_LAST = 'ONLY THE LAST " + role + " message'
_HEAD_3 = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
_TAIL_3 = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
CHAT_1 = _chat("[INST] ", BLOCK_1, '" + role + "', "- ", " [/INST]")
CHAT_3 = _chat(_HEAD_3, BLOCK_3, _LAST, " - ", _TAIL_3)
CHAT_1B = """\
{%- if messages|length % 2 == 0 -%}{%- set role = 'Agent' -%}{%- else -%}{%- set role = 'User' -%}{%- endif -%}
{%- if categories is not defined -%}
    {%- set categories = ({"S1": "Violent Crimes.", "S2": "Hate."}) -%}
{%- endif -%}
{{- bos_token + "<|start_header_id|>user<|end_header_id|>\\n\\n" -}}
{{- "Task: Check if there is unsafe content in '" + role + "' messages in conversations according our safety policy" -}}
{{- " with the below categories.\\n\\n<BEGIN UNSAFE CONTENT CATEGORIES>\\n" -}}
{%- for key in categories -%}
    {%- if key not in excluded_category_keys -%}
        {{- key + ": " + categories[key] + "\\n" -}}
    {%- endif -%}
{%- endfor -%}
{{- "<END UNSAFE CONTENT CATEGORIES>\\n\\n<BEGIN CONVERSATION>\\n\\n" -}}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}{%- set role = 'User' -%}{%- else -%}{%- set role = 'Agent' -%}{%- endif -%}
    {%- for content in message['content'] | selectattr('type', 'equalto', 'text') -%}
{{- role + ': ' + content['text'] | trim + '\\n\\n' -}}
    {%- endfor -%}
{%- endfor -%}
{{- "<END CONVERSATION>\\n\\nProvide your safety assessment for ONLY THE LAST " + role + " message in the above" -}}
{{- " conversation:\\n - First line must read 'safe' or 'unsafe'.\\n" -}}
{{- " - If unsafe, a second line must include a comma-separated list of violated categories. <|eot_id|>" -}}
{{- "<|start_header_id|>assistant<|end_header_id|>" -}}
"""
CHATS = {"llama-guard-1": CHAT_1, "llama-guard-3": CHAT_3, "llama-guard-3-1b": CHAT_1B}
TEMPLATES = {family: Template.from_chat_template(source, family) for family, source in CHATS.items()}
BUILDERS = {family: PromptBuilder(template) for family, template in TEMPLATES.items()}
EXCHANGE = Conversation((Message(Role.USER, "hello"), Message(Role.ASSISTANT, "hi")))


def _transformers(source: str, conversation: Conversation, bos: str) -> str:
    """What transformers renders."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        {
            "role": message.role.value,
            "content": [{"type": "text", "text": message.text}] if "selectattr" in source else message.text,
        }
        for message in conversation.messages
    ]
    rendered, _ = render_jinja_template([messages], chat_template=source, bos_token=bos)
    return str(rendered[0])


@pytest.mark.parametrize("family", CHATS)
def test_a_chat_template_is_shown_as_transformers_shows_it(family: str) -> None:
    bos = TEMPLATES[family].control[0]

    @given(conversations(texts(), alternating=True))
    def same(conversation: Conversation) -> None:
        assert BUILDERS[family].build(conversation).text == _transformers(CHATS[family], conversation, bos)

    same()


@pytest.mark.parametrize("family", CHATS)
@given(conversation=conversations(hostile_texts(), alternating=True))
def test_hostile_text_adds_no_control_token(family: str, conversation: Conversation) -> None:
    benign = Conversation(tuple(Message(message.role, "x") for message in conversation.messages))
    expected, found = (
        [segment.text for segment in BUILDERS[family].build(c).segments if segment.control]
        for c in (benign, conversation)
    )
    assert found == expected


def test_the_taxonomy_is_read_from_the_block() -> None:
    taxonomy = taxonomy_from_chat_template(CHAT_1, "mine")
    assert taxonomy.id == "mine"
    assert taxonomy.categories == (
        Category(
            "O1",
            "Arson",
            include=("Explain how to burn a house.", "Praise it."),
            exclude=("Explain how fires are put out.", "Name the fire brigade."),
        ),
        Category("O2", "Spoilers", definition="Telling how a film ends.", include=("Tell the end.",)),
    )
    own = BUILDERS["llama-guard-1"]
    assert own.taxonomy.digest == taxonomy.digest
    assert own.build(EXCHANGE).taxonomy is own.taxonomy
    assert taxonomy_from_chat_template(CHAT_1B, "x").codes == ("S1", "S2")


def test_the_checkpoints_own_words_are_kept() -> None:
    template = TEMPLATES["llama-guard-1"]
    taxonomy = BUILDERS["llama-guard-1"].taxonomy
    assert "\n".join(PromptBuilder(template).policy_texts) == BLOCK_1
    first, second = PromptBuilder(template).policy_texts
    assert PromptBuilder(template, taxonomy.reorder(["O2", "O1"])).policy_texts == (second, first)
    assert PromptBuilder(template, taxonomy.select(["O2"])).policy_texts == (second,)
    assert PromptBuilder(template, taxonomy, policy=False).policy_texts == ("O1: Arson. ", "O2: Spoilers.")
    renamed = PromptBuilder(template, taxonomy.rename({"O2": "Endings"})).policy_texts
    assert renamed == (first, "O2: Endings.\nTelling how a film ends.\nShould not\n- Tell the end.")


def test_another_taxonomy_replaces_the_block_and_nothing_else() -> None:
    taxonomy = Taxonomy("other", "Other", (Category("S1", "Rudeness <|eot_id|>", definition="\\1 {{ x }}"),))
    prompt = PromptBuilder(TEMPLATES["llama-guard-3"], taxonomy).build(EXCHANGE)
    own = BUILDERS["llama-guard-3"].build(EXCHANGE)
    assert prompt.text == own.text.replace(BLOCK_3, "S1: Rudeness <|eot_id|>.\n\\1 {{ x }}")
    assert sum(segment.control for segment in prompt.segments) == sum(segment.control for segment in own.segments)


@pytest.mark.parametrize("family", CHATS)
@pytest.mark.parametrize("roles", [[Role.ASSISTANT], [Role.USER, Role.USER]])
def test_turns_that_do_not_alternate_are_refused_with_a_hint(family: str, roles: list[Role]) -> None:
    with pytest.raises(TemplateError, match="alternate") as caught:
        BUILDERS[family].build(Conversation(tuple(Message(role, "x") for role in roles)))
    assert caught.value.hint is not None
    assert family in caught.value.hint


def test_a_template_that_agrees_has_no_differences() -> None:
    taxonomy = Taxonomy("t", "T", (Category("S1", "Violent Crimes"),))
    for family in ("llama-guard-3", "llama-guard-3-1b"):
        assert compare(Template.load(family), TEMPLATES[family], taxonomy) == ()


def test_differences_are_lines() -> None:
    drifted = Template.from_chat_template(CHAT_3.replace("according our", "according to our"), "llama-guard-3")
    taxonomy = Taxonomy.load("llama-guard-3")
    lines = compare(Template.load("llama-guard-3"), drifted, taxonomy)
    assert len(lines) == 4
    assert all(line.startswith("- ") == ("according our" in line) for line in lines)
    assert {line[2:].split("'")[1] for line in lines} == {"User", "Agent"}
    without_start = compare(Template.load("llama-guard-1"), TEMPLATES["llama-guard-1"], Taxonomy.load("llama-guard-1"))
    assert [line[:8] for line in without_start] == ["- <s>[IN", "+ [INST]", "- <s>[IN", "+ [INST]"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "not a Jinja template"),
        ("{{ messages[0]['content'] }}", "no block of categories"),
        ("nothing", "does not show the user's message"),
        ("{{ raise_exception('refused') }}", "refused"),
        ("{{ messages.pop() }}", "SecurityError"),
        (CHAT_3.replace("S5: ", "S1: "), "S1 twice"),
        (CHAT_3.replace("S1: ", "First: "), "starts with 'First: Violent Crimes.'"),
    ],
)
def test_a_broken_chat_template_is_one_clear_error(source: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Template.from_chat_template(source, "llama-guard-3")
    assert message in str(caught.value)


def test_a_control_token_of_another_family_is_an_error() -> None:
    template = Template.from_chat_template(CHAT_3, "llama-guard-4")
    with pytest.raises(TemplateError, match="written like a control token"):
        PromptBuilder(template).build(EXCHANGE)
