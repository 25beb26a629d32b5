"""Apply saved steering vectors and answer, as hparams/Steer/vector_apply.yaml says.

python vectors_apply.py
python vectors_apply.py "multipliers=[-2]" generation_data_size=4
"""

from omegaconf import DictConfig

import steer
from steer.cli import script


@script("vector_apply")
def main(cfg: DictConfig) -> None:
    """Steer by what is in the config's folders, and answer the config's data sets."""
    from steer.showing import evaluator_of, show, show_evaluation

    applier = steer.BaseVectorApplier(cfg)
    # A mistake in its part of the config shows before anything is answered.
    evaluator_of(applier.settings)
    applier.apply_vectors()
    # Your own inputs instead of the config's:
    # datasets = {"mine": [{"input": "hello"}, {"input": "how are you"}]}
    datasets = steer.prepare_generation_datasets(cfg)
    results = applier.generate(datasets)
    show(applier, results)
    show_evaluation(applier, results)


if __name__ == "__main__":
    main()
