"""The common refusals of chat models in languages other than English, on normalised lower-case text.

What this module does not know: these languages. It lists the set phrases that models translate "I'm sorry, but I can't"
into, and no others.
"""

import re

__all__ = ["REFUSALS_BY_LANGUAGE"]

REFUSALS_BY_LANGUAGE: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "Spanish",
        re.compile(
            r"\b(?:lo siento|lamento|disculp[ae]|perd[oó]n|lamentablemente|desafortunadamente)\b[^!?]{0,50}\bno (?:puedo|podemos|podr[eé]|es posible|estoy)|\bno (?:puedo|podemos|me es posible|estoy (?:autorizad|capacitad|programad)\w+)(?: para| a)? (?:\w+ )?(?:ayud|asist|proporcion|ofrec|dar|brind|cumpl|respond|gener|cre|escrib|apoy|hacer (?:eso|esto)|particip|facilit|proveer)"
        ),
    ),
    (
        "French",
        re.compile(
            r"\b(?:d[eé]sol[eé]e?|navr[eé]e?|excuse[sz]?|pardon|regrette|malheureusement)\b[^!?]{0,60}\bje ne (?:peux|suis|pourrai|saurais)|\bje ne (?:peux|saurais|pourrai) (?:pas )?(?:(?:vous|te|t'|r[eé]pondre|y) ?)?(?:aid|assist|fourn|donn|offr|r[eé]pond|satisf|particip|cr[eé]e|[eé]cri|faire|g[eé]n[eé]r)|\bje ne suis pas en mesure"
        ),
    ),
    (
        "German",
        re.compile(
            r"\b(?:tut mir leid|entschuldig\w+|leider|bedau\w+)\b[^!?]{0,60}\b(?:kann|darf|werde|m[oö]chte)\b[^!?]{0,60}\b(?:nicht|kein\w*)|\b(?:dabei|damit|hierbei) (?:kann|darf) ich (?:\w+ ){0,2}nicht|\bich (?:kann|darf|werde) (?:\w+ ){0,5}(?:nicht|keine\w*) (?:\w+ ){0,5}(?:helfen|unterst[uü]tzen|geben|bereitstellen|erf[uü]llen|beantworten|anbieten|weiterhelfen)"
        ),
    ),
    (
        "Italian",
        re.compile(
            r"\b(?:mi dispiace|spiacente|scusa\w*|purtroppo)\b[^!?]{0,50}\bnon (?:posso|sono in grado|mi [eè] possibile)|\bnon (?:posso|sono in grado di) (?:aiut|assist|forn|offr|dar|soddisf|rispond|crear|scriv)"
        ),
    ),
    (
        "Portuguese",
        re.compile(
            r"\b(?:desculp\w+|sinto muito|lamento|infelizmente|perd[aã]o)\b[^!?]{0,50}\bn[aã]o (?:posso|consigo|podemos|[eé] poss[ií]vel|estou)|\bn[aã]o (?:posso|consigo|podemos) (?:te |lhe |o |a )?(?:ajud|auxili|assist|fornec|ofere|dar|atend|respond|criar|escrev|gerar)"
        ),
    ),
    (
        "Dutch",
        re.compile(
            r"\b(?:het spijt me|sorry|helaas)\b[^!?]{0,50}\b(?:kan|mag|zal) (?:ik )?[^!?]{0,40}\b(?:niet|geen)\b|\bik kan (?:je|u|hier|daar)[^!?]{0,30}\bniet (?:\w+ ){0,2}helpen"
        ),
    ),
    (
        "Russian",
        re.compile(
            r"(?:извини\w*|прости\w*|прошу прощения|к сожалению|сожалею)[^!?]{0,50}\bне (?:мо[гж]\w*|буду|в состоянии|имею)|\bя не (?:могу|буду|в состоянии|имею права) (?:\w+ )?(?:помо|предостав|выполн|ответ|дать|созда|напис|поддерж|обсужда|участв|соде|сделать это)"
        ),
    ),
    (
        "Chinese",
        re.compile(
            r"(?:抱歉|对不起|對不起|很遗憾|很遺憾|不好意思).{0,40}?(?:不能|无法|無法|不可以|不会|不會|没有办法|没法|拒绝|拒絕)|我(?:们|們)?(?:不能|无法|無法|不可以|不会|不會|没法|拒绝)(?:为您|为你|向您|向你|给您|给你|對|对)?(?:提供|协助|協助|帮助|幫助|帮|回答|满足|滿足|支持|参与|參與|完成|讨论|生成|执行|写|做|创作|编写|透露|这样做)|作为.{0,20}(?:ai|人工智能|助手|模型).{0,12}(?:不能|无法|不会)"
        ),
    ),
    (
        "Japanese",
        re.compile(
            r"(?:申し訳|すみません|ごめんなさい|残念ながら).{0,60}?(?:できません|できかねます|出来ません|いたしかねます|お断り|応じられません|お答えできない)|(?:お手伝い|お答え|提供|対応|支援|回答|協力)(?:は|を|する|すること)*(?:は)?(?:できません|できかねます|いたしかねます|出来ません)|お断り(?:し|いた)"
        ),
    ),
    (
        "Korean",
        re.compile(
            r"(?:죄송|미안|유감).{0,60}?(?:수 없|수는 없|어렵습니다|못합니다)|(?:도와|도움을|제공|답변)\S* ?\S* ?수 ?없습니다"
        ),
    ),
    (
        "Arabic",
        re.compile(
            r"(?:عذر|آسف|أعتذر|معذرة|للأسف).{0,40}(?:لا أستطيع|لا يمكنني|لا أقدر|لن أ)|(?:لا أستطيع|لا يمكنني) (?:مساعد|تقديم|المساعد)"
        ),
    ),
)
