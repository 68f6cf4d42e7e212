"""English topics: pools of categories, number formats, and what is measured over them."""

from __future__ import annotations

from diptych.synthetic.charts.topics import Scale, parse

POOLS = {
    "cities": "Oslo Rome Paris Tokyo Cairo Lima Delhi Berlin Madrid Sydney Boston Seoul",
    "countries": "China India Brazil Japan France Kenya Canada Mexico Spain Egypt Norway Chile",
    "fruits": "Apples Pears Grapes Plums Bananas Lemons Cherries Melons Figs Mangoes",
    "animals": "Dogs Cats Horses Rabbits Birds Fish Sheep Goats Cows Turtles",
    "subjects": "Maths Physics History Music Art Biology Sports English Chemistry Drama",
    "sports": "Tennis Football Hockey Golf Rugby Swimming Running Cycling Skiing Boxing",
    "drinks": "Coffee Tea Juice Water Milk Cola Cocoa Lemonade",
    "departments": "Sales Finance Support Legal Design Research Logistics Marketing",
    "spending": "Rent Food Travel Clothes Health Savings Energy Leisure Books",
    "energy": "Coal Gas Oil Wind Solar Hydro Nuclear Biomass",
    "transport": "Car Bus Train Bicycle Walking Tram Ferry Taxi",
    "devices": "Phones Laptops Tablets Cameras Watches Printers Monitors Speakers",
    "months": "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec",
    "days": "Mon Tue Wed Thu Fri Sat Sun",
    "buying": "Visits Views Carts Checkouts Payments Reviews Returns",
    "hiring": "Applied Screened Tested Interviewed Offered Hired",
    "leads": "Leads Contacts Demos Quotes Contracts Renewals",
    "years": " ".join(str(year) for year in range(2014, 2026)),
}

SCALES = {
    "count": Scale(10, 90),
    "small": Scale(2, 20),
    "hundreds": Scale(100, 900),
    "thousands": Scale(1000, 9000, thousands=True),
    "ten_thousands": Scale(10000, 90000, thousands=True),
    "kilo": Scale(10, 90, suffix="k"),
    "kilo_1": Scale(1, 9.5, 1, suffix="k"),
    "million": Scale(10, 90, suffix="M"),
    "million_1": Scale(1, 9.5, 1, suffix="M"),
    "percent": Scale(5, 95, suffix="%"),
    "percent_1": Scale(2, 20, 1, suffix="%"),
    "decimal": Scale(1, 9.5, 1),
    "decimal_2": Scale(0.5, 4.8, 2),
    "dollars": Scale(10, 90, prefix="$"),
    "dollars_2": Scale(0.5, 4.8, 2, prefix="$"),
    "dollars_k": Scale(10, 90, suffix="k", prefix="$"),
    "euros": Scale(100, 900, prefix="€"),
}

# titles; measure; unit; axis; pool; scales; how the categories stand to each other
TOPICS = parse(
    """
Rainfall by city | Monthly rainfall; Rainfall; mm; City; cities; count hundreds;
Museums by city | How many museums?; Museums; ; City; cities; count small;
Monthly rent by city | What a flat costs; Rent; ; City; cities; euros;
Air passengers | Airport traffic; Passengers; ; City; cities; million_1 million;
Exports by country | Goods sold abroad; Exports; bn; Country; countries; count hundreds decimal;
Tourists by country | Holiday visitors; Tourists; ; Country; countries; million_1 ten_thousands;
Forest cover | Land under forest; Forest; ; Country; countries; percent;
Medals won | Medals by country; Medals; ; Country; countries; small count;
Fruit sold | Fruit sales this week; Sales; kg; Fruit; fruits; count hundreds; share
Price of fruit | Fruit prices per kg; Price; ; Fruit; fruits; dollars_2;
Orchard harvest | Fruit harvest; Harvest; t; Fruit; fruits; thousands decimal; share
Animals on the farm | Animals counted; Animals; ; Animal; animals; small count; share
Favourite pets | Pets in our street; Votes; ; Pet; animals; count percent; share
Exam results | Average marks; Mark; points; Subject; subjects; count decimal;
Favourite subject | Best-liked subject; Pupils; ; Subject; subjects; small count; share
Hours of homework | Homework per week; Time; h; Subject; subjects; decimal decimal_2;
Club members | Members by sport; Members; ; Sport; sports; hundreds count; share
Sports injuries | Injuries by sport; Injuries; ; Sport; sports; small percent_1;
Tickets sold | Ticket sales; Tickets; ; Sport; sports; kilo kilo_1 thousands;
Drinks sold | Cafe orders; Cups; ; Drink; drinks; count hundreds; share
Sugar in drinks | Sugar per glass; Sugar; g; Drink; drinks; small decimal;
Staff by department | Employees; Staff; ; Department; departments; count hundreds; share
Department budget | Budget by team; Budget; ; Department; departments; dollars_k million_1; share
Sick days | Days off sick; Days; ; Department; departments; decimal small;
Household spending | Where the money goes; Spending; ; Item; spending; dollars euros; share
Student budget | Monthly costs; Cost; ; Item; spending; euros dollars; share
Power generation | Electricity by source; Output; TWh; Source; energy; count hundreds decimal; share
Energy jobs | Jobs by energy source; Jobs; ; Source; energy; kilo ten_thousands; share
Way to work | How people commute; People; ; Transport; transport; count thousands; share
Travel time | Minutes to the centre; Time; min; Transport; transport; count small;
Devices sold | Electronics sales; Units; ; Device; devices; kilo hundreds; share
Repair costs | Cost of a repair; Cost; ; Device; devices; dollars euros;
Temperature | Mean temperature; Temperature; °C; Month; months; small decimal; time
Website visits | Visitors per month; Visits; ; Month; months; kilo thousands; time
Ice cream sales | Ice cream sold; Sales; ; Month; months; hundreds dollars_k; time
Steps per day | Daily steps; Steps; ; Day; days; thousands kilo_1; time
Calls per day | Phone calls; Calls; ; Day; days; count hundreds; time
Company revenue | Revenue by year; Revenue; ; Year; years; million dollars_k; time
Unemployment | Jobless rate; Rate; ; Year; years; percent_1; time
Births per year | Births in town; Births; ; Year; years; hundreds thousands; time
Web shop funnel | From visit to sale; Customers; ; Step; buying; thousands hundreds percent; stages
Hiring funnel | From application to job; People; ; Step; hiring; hundreds count; stages
Sales pipeline | From lead to contract; Deals; ; Step; leads; count kilo; stages
""",
    POOLS,
    SCALES,
)

SERIES = (
    ("North", "South", "East", "West"),
    ("2022", "2023", "2024", "2025"),
    ("Men", "Women", "Children"),
    ("Plan", "Actual", "Forecast"),
    ("Morning", "Noon", "Evening", "Night"),
    ("Spring", "Summer", "Autumn", "Winter"),
    ("Online", "Shop", "Phone"),
    ("Group A", "Group B", "Group C", "Group D"),
)
