"""Make steering vectors and save them, as hparams/Steer/vector_generate.yaml says.

python vectors_generate.py
python vectors_generate.py "layers=[12,15]" steer_train_dataset=refusal
"""

from omegaconf import DictConfig

import steer
from steer.cli import script


@script("vector_generate", shared=True)
def main(cfg: DictConfig) -> None:
    """Train every method of the config on every data set of the config."""
    from steer.showing import show_training, show_written

    generator = steer.BaseVectorGenerator(cfg)
    datasets = generator.training_data()
    # Your own data instead of the config's:
    # datasets = {"mine": [{"question": "...", "matching": "...", "not_matching": "..."}]}
    generator.generate_vectors(datasets)
    show_training(generator)
    show_written(generator.folders(*generator.trained))


if __name__ == "__main__":
    main()
