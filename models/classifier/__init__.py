from models.classifier.model import Classifier, ClassifierConfig

__all__ = ["Classifier", "ClassifierConfig"]
