"""Make steering vectors, apply them, answer, and prove that it steered: all in one run.

python steering.py
python steering.py "layers=[12]" "multipliers=[4]" model_name_or_path=Qwen/Qwen2.5-0.5B-Instruct
python steering.py --explain-config
"""

from omegaconf import DictConfig

import steer
from steer.cli import script


@script("config")
def main(cfg: DictConfig) -> None:
    """Train, apply and answer as hparams/Steer/config.yaml says."""
    from steer.showing import evaluator_of, show, show_evaluation, show_training

    generator = steer.BaseVectorGenerator(cfg)
    # Your own data instead of the config's:
    # datasets = {"mine": [{"question": "...", "matching": "...", "not_matching": "..."}]}
    datasets = generator.training_data() if generator.hparams_dict else {}
    inputs = steer.prepare_generation_datasets(cfg)
    # Made before anything is trained: a mistake in its part of the config shows at once.
    applier = steer.BaseVectorApplier(cfg, generator.model)
    evaluator_of(applier.settings)
    # A prompt needs no training.
    if datasets or not applier.hparams_dict:
        generator.generate_vectors(datasets)
        show_training(generator)
    place = applier.settings.generation_output_dir
    runs = generator.steered_together()
    for names in runs:
        # Several runs do not share a folder, and each is judged by its own held-out data.
        if place and len(runs) > 1:
            applier.settings.generation_output_dir = f"{place}/{names[0]}"
        applier.settings.steer_train_dataset = names
        applier.apply_vectors(generator.vectors(*names), generator.folds(*names))
        results = applier.generate(inputs)
        show(applier, results, generator.folders(*names), both_ways=True)
        show_evaluation(applier, results)


if __name__ == "__main__":
    main()
