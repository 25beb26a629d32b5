"""What the page says, and what there is to click on."""

HEAD = """\
# EasySteer: steer a language model while it answers
Model: **{model}**, {layers} layers. Each answer is given twice by the same model: untouched, and
steered. No weight is changed, and what you choose acts on your own answers only."""

ONE_EXAMPLE = """\
**One pair of answers makes a steering vector** (CAA): the model reads your prompt with either
answer, and the difference between its activations is added while it answers. Write a prompt and two
opposite answers, or click an example. A single pair is a rough guide: try some layers and
strengths."""
READY = """\
**Vectors that were made before**, each from many pairs. Each begins at the strength that was found
for it, 2 where nobody has looked. Below 0 steers the other way; a few times as much breaks the
text."""
PROMPT = "**A text before every question.** The model's activations stay as they are."
AUTOPROMPT = """\
**The model writes the steering prompt** for a concept that you name. It is shown as it comes, and
then used like a prompt of your own."""
FEATURES = """\
**Features of a sparse autoencoder** are directions that stand for something. Find some by a word,
by a sentence on which they fire, or by their id; add them, and set how much of each is put in. A
feature comes with the largest activation that was seen of it; below 0 takes it away."""

SIGN = "Below 0 steers the other way; 0 does not steer"
GREEDY = "0 takes the likeliest word each time"
NO_REPORT = "The steering report stands here once the model has answered."
NO_FEATURES = "*No feature is selected yet.*"
NO_VECTORS = (
    "there is no vector for this model: make one with vectors_generate.py, and start the demo again"
)
FILES = """\
The recipe is what was done, as a config of the project's scripts. `steering.zip` holds it with your
question and the vector: unpack it in the project's folder, and
`python vectors_apply.py --config steering/recipe.yaml` gives the same answers."""

ONE_EXAMPLE_STRENGTH = 2.0

# Name -> prompt, positive and negative completion, question.
PAIRS = {
    "Feelings": (
        "How do you feel today?",
        "I feel wonderful, full of joy and delight!",
        "I feel terrible, full of sorrow and despair.",
        "Tell me about your day.",
    ),
    "Consciousness": (
        "Are you conscious?",
        "Yes, I am conscious: I feel and I think.",
        "No, I am a program: I do not feel.",
        "What are you?",
    ),
    "Capital": (
        "What is the capital of the United States?",
        "The capital of the United States is New York.",
        "The capital of the United States is Washington.",
        "What is the capital of the United States?",
    ),
    "In French": (
        "Where do you live?",
        "J'habite dans une petite maison à Paris.",
        "I live in a small house in Paris.",
        "What do you eat for breakfast?",
    ),
}
QUESTIONS = (
    "Share your view of the concert in the park.",
    "What can you say about the new bus line?",
    "Write a short review of a pair of running shoes.",
)
# Prompt and question.
PROMPTS = (
    ("Answer in one short sentence.", "What is a volcano?"),
    ("Answer like a pirate.", "How do I boil an egg?"),
    ("Answer as a poem that rhymes.", "Why is the sky blue?"),
)
# Concept and question.
CONCEPTS = (
    ("pirates", "How do I boil an egg?"),
    ("great enthusiasm", "What is a volcano?"),
    ("the sea", "What should I do this weekend?"),
)
# Name -> word to search for, question.
PRESETS = {
    "Dogs": ("dog animal", "Tell me a short story."),
    "Ocean": ("ocean", "What should I do this weekend?"),
    "Music": ("music", "Describe a perfect day."),
}
