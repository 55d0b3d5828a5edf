"""Small tables for each recipe that learns from numbers and words, and what the recipe is told."""

from pathlib import Path

from recipe_basics import TWO_STEPS, Maker, Overrides, draw, table


def ludwig_titanic(made: Path) -> Overrides:
    """The columns that Kaggle's file has, with its gaps."""
    random = draw()
    rows = [
        {
            "PassengerId": number,
            "Survived": number % 2,
            "Pclass": 1 + number % 3,
            "Name": f"Doe, Mr. {number}",
            "Sex": ["male", "female"][number % 2],
            "Age": "" if number % 7 == 0 else round(random.uniform(1, 70), 1),
            "SibSp": number % 3,
            "Parch": number % 2,
            "Ticket": f"A/5 {number}",
            "Fare": round(random.uniform(5, 90), 4),
            "Cabin": "",
            "Embarked": "" if number == 11 else "SCQ"[number % 3],
        }
        for number in range(40)
    ]
    return {"data.source.path": table(made / "train.csv", rows), **TWO_STEPS}


def ludwig_imbalance(made: Path) -> Overrides:
    """The columns of the insurance data; one in five wants one."""
    random = draw()
    rows = [
        {
            "id": number,
            "Gender": ["Male", "Female"][number % 2],
            "Age": 20 + number,
            "Driving_License": 1,
            "Region_Code": float(number % 9),
            "Previously_Insured": number % 2,
            "Vehicle_Age": ["< 1 Year", "1-2 Year", "> 2 Years"][number % 3],
            "Vehicle_Damage": ["Yes", "No"][number % 2],
            "Annual_Premium": round(random.uniform(2000, 60_000), 1),
            "Policy_Sales_Channel": float(number % 5),
            "Vintage": 10 + number,
            "Response": int(number % 5 == 0),
        }
        for number in range(60)
    ]
    return {"data.source.path": table(made / "train.csv", rows), **TWO_STEPS}


def ludwig_multi_task(made: Path) -> Overrides:
    """The columns of the wines, with a score and whether it is high."""
    random = draw()
    names = (
        "fixed_acidity volatile_acidity citric_acid residual_sugar chlorides free_sulfur_dioxide"
    )
    names += " total_sulfur_dioxide density pH sulphates alcohol"
    rows = [
        {name: round(random.uniform(0, 9), 3) for name in names.split()}
        | {"quality_score": 3 + number % 6, "quality_binary": int(number % 6 > 2)}
        for number in range(40)
    ]
    return {"data.source.path": table(made / "wine_quality.csv", rows), **TWO_STEPS}


MAKERS: dict[str, Maker] = {
    "ludwig_titanic": ludwig_titanic,
    "ludwig_imbalance": ludwig_imbalance,
    "ludwig_multi_task": ludwig_multi_task,
}
