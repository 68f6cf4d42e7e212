"""Chinese topics: pools of categories, number formats, and what is measured over them."""

from __future__ import annotations

from diptych.synthetic.charts.topics import Scale, parse

POOLS = {
    "cities": "北京 上海 广州 深圳 成都 武汉 西安 南京 杭州 重庆",
    "countries": "中国 印度 巴西 日本 法国 德国 英国 埃及 泰国 美国",
    "fruits": "苹果 香蕉 葡萄 西瓜 桃子 橙子 草莓 芒果 柠檬 樱桃",
    "animals": "狗 猫 兔子 马 牛 羊 鸡 鸭 金鱼 乌龟",
    "subjects": "语文 数学 英语 物理 化学 历史 地理 音乐 美术 体育",
    "sports": "足球 篮球 网球 游泳 跑步 滑雪 排球 骑行 体操 射箭",
    "drinks": "咖啡 绿茶 红茶 果汁 牛奶 豆浆 可乐 矿泉水",
    "departments": "销售部 财务部 研发部 市场部 人事部 法务部 客服部 设计部",
    "spending": "房租 食品 交通 服装 医疗 教育 旅游 储蓄",
    "energy": "煤炭 天然气 石油 风电 光伏 水电 核电 地热",
    "transport": "地铁 公交 汽车 自行车 步行 高铁 轮船 出租车",
    "devices": "手机 电脑 平板 相机 手表 打印机 音箱 耳机",
    "days": "周一 周二 周三 周四 周五 周六 周日",
    "buying": "访问 浏览 加购 下单 付款 收货 评价",
    "hiring": "投递 筛选 笔试 面试 录用 入职",
    "leads": "线索 沟通 演示 报价 签约 续约",
    "months": " ".join(f"{month}月" for month in range(1, 13)),
    "years": " ".join(str(year) for year in range(2014, 2026)),
}

SCALES = {
    "count": Scale(10, 90),
    "small": Scale(2, 20),
    "hundreds": Scale(100, 900),
    "thousands": Scale(1000, 9000, thousands=True),
    "wan": Scale(10, 90, suffix="万"),
    "wan_1": Scale(1, 9.5, 1, suffix="万"),
    "yi_1": Scale(1, 9.5, 1, suffix="亿"),
    "percent": Scale(5, 95, suffix="%"),
    "percent_1": Scale(2, 20, 1, suffix="%"),
    "decimal": Scale(1, 9.5, 1),
    "decimal_2": Scale(0.5, 4.8, 2),
    "yuan": Scale(10, 90, prefix="¥"),
    "yuan_2": Scale(0.5, 4.8, 2, prefix="¥"),
    "yuan_k": Scale(1000, 9000, prefix="¥", thousands=True),
}

# titles; measure; unit; axis; pool; scales; how the categories stand to each other
TOPICS = parse(
    """
各城市降雨量 | 城市月降雨量; 降雨量; 毫米; 城市; cities; count hundreds;
各城市博物馆数量 | 博物馆统计; 数量; 座; 城市; cities; count small;
各城市平均房租 | 房租比较; 房租; ; 城市; cities; yuan_k;
机场客流量 | 各城市客流; 客流; ; 城市; cities; wan wan_1;
各国出口额 | 出口统计; 出口额; ; 国家; countries; yi_1 hundreds;
各国游客人数 | 出境游目的地; 游客; ; 国家; countries; wan wan_1;
森林覆盖率 | 各国森林面积占比; 覆盖率; ; 国家; countries; percent;
奖牌榜 | 各国奖牌数; 奖牌; 枚; 国家; countries; small count;
水果销量 | 本周水果销售; 销量; 千克; 水果; fruits; count hundreds; share
水果价格 | 每斤水果单价; 单价; ; 水果; fruits; yuan_2;
果园产量 | 水果收成; 产量; 吨; 水果; fruits; thousands decimal; share
农场动物数量 | 动物统计; 数量; 只; 动物; animals; small count; share
最受欢迎的宠物 | 宠物投票; 票数; ; 动物; animals; count percent; share
期末考试成绩 | 各科平均分; 分数; 分; 科目; subjects; count decimal;
最喜欢的科目 | 学生兴趣调查; 人数; ; 科目; subjects; small count; share
每周作业时间 | 作业用时; 时间; 小时; 科目; subjects; decimal decimal_2;
俱乐部会员 | 各项目会员人数; 会员; 人; 项目; sports; hundreds count; share
运动损伤统计 | 运动受伤比例; 比例; ; 项目; sports; percent_1;
比赛门票销量 | 门票销售; 门票; ; 项目; sports; thousands wan_1;
饮品销量 | 咖啡馆订单; 杯数; ; 饮品; drinks; count hundreds; share
饮料含糖量 | 每杯含糖; 含糖量; 克; 饮品; drinks; small decimal;
各部门人数 | 员工分布; 人数; ; 部门; departments; count hundreds; share
部门预算 | 年度预算; 预算; ; 部门; departments; wan yi_1; share
病假天数 | 各部门病假; 天数; 天; 部门; departments; decimal small;
家庭支出 | 每月开销; 支出; ; 项目; spending; yuan_k yuan; share
学生花费 | 每周花费; 花费; ; 项目; spending; yuan; share
发电量构成 | 各能源发电量; 发电量; ; 能源; energy; count hundreds; share
能源行业就业 | 各能源岗位; 岗位; ; 能源; energy; wan thousands; share
上班方式 | 通勤方式调查; 人数; ; 方式; transport; count thousands; share
到市中心用时 | 出行时间; 时间; 分钟; 方式; transport; count small;
电子产品销量 | 数码销售; 销量; ; 产品; devices; wan hundreds; share
维修费用 | 产品维修价格; 费用; ; 产品; devices; yuan;
月平均气温 | 气温变化; 气温; °C; 月份; months; small decimal; time
网站访问量 | 每月访问; 访问量; ; 月份; months; wan thousands; time
冰淇淋销量 | 冷饮销售; 销量; ; 月份; months; hundreds count; time
每日步数 | 一周步数; 步数; 步; 日期; days; thousands; time
每日来电 | 客服来电; 来电; 次; 日期; days; count hundreds; time
公司收入 | 年度收入; 收入; ; 年份; years; wan yi_1; time
失业率 | 城镇失业率; 失业率; ; 年份; years; percent_1; time
出生人数 | 年度出生人口; 人数; ; 年份; years; hundreds thousands; time
网店转化 | 从访问到购买; 人数; ; 步骤; buying; thousands hundreds; stages
招聘流程 | 从投递到入职; 人数; ; 步骤; hiring; hundreds count; stages
销售流程 | 从线索到签约; 数量; ; 步骤; leads; count percent; stages
""",
    POOLS,
    SCALES,
)

SERIES = (
    ("东部", "南部", "西部", "北部"),
    ("2022", "2023", "2024", "2025"),
    ("男性", "女性", "儿童"),
    ("计划", "实际", "预测"),
    ("早上", "中午", "晚上", "夜间"),
    ("春季", "夏季", "秋季", "冬季"),
    ("线上", "门店", "电话"),
    ("甲组", "乙组", "丙组", "丁组"),
)
