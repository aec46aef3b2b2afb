"""Function words of the languages in Latin script that small chat models write, as fixed lists.

Running text in any of these languages consists of them to a quarter or more; word salad does not.
What this module does not know: every language. Text in one that is missing looks poorer in function words than it is.
"""

__all__ = ["FUNCTION_WORDS"]

_BY_LANGUAGE = {
    "en": "a about after all also am an and any are as at be because been but by can could did do does for from had has have he her his how i i'm if in into is it it's its just like may me more most my no not of on one only or other our out over she should so some such than that the their them then there these they this those to too up us use was we were what when where which while who will with would you your don't can't",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ya este si porque esta entre cuando muy sin sobre también me hasta hay donde desde todo nos uno ni ese eso puede son ser",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont la ou avec son aux mais comme vous nous elle on je sa ses cette être peut fait si leur tout d'un d'une c'est qu'il l'on n'est",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis mehr durch man dann wenn kann ich wir du",
    "it": "di e il la che in a per un è una sono non con si da come le dei nel alla i più del al gli della anche lo ma o se delle ha su questo può essere sono c'è",
    "pt": "de a o que e do da em um para com não uma os no se na por mais as dos como mas ao ele das à seu sua ou quando muito nos já eu também só pelo pela até isso ela entre era depois sem mesmo aos seus quem nas me esse você são é pode ser",
    "nl": "de het een en van ik te dat die in je is niet op aan met als voor zijn er maar om dan zou of wat mijn men dit zo door over ze zich bij ook tot uit der daar haar naar heb hoe heeft hebben deze u want nog kan wel wordt",
    "sv": "och att det i en som på är av för med till den har de inte om ett han men var jag sig från vi så kan eller hur du man ska också efter vid nu när alla",
    "da": "og at det i en som på er af for med til den har de ikke om et han men var jeg sig fra vi så kan eller hvordan du man skal også efter ved nu når alle å",
    "pl": "i w na z do się nie że to jest o jak za po co od ale przez dla są tego które lub oraz tym jego może czy być jako tylko już ze",
    "cs": "a v se na je že s z do o i to jako za by ale pro po jsou který které od při nebo být jeho také může jak aby",
    "tr": "ve bir bu için de da ile olarak daha çok en o ne gibi ama kadar sonra olan her ya veya değil var mi ki şu ben sen",
    "id": "yang dan di untuk dengan ini itu dari pada tidak dalam adalah akan atau juga ke saya anda bisa dapat oleh ada karena sebagai lebih seperti kita mereka telah",
    "fi": "ja on ei se että oli hän mutta ovat kun niin kuin myös joka tai sen voi olla vain jos sekä ne mitä tämä minä",
    "hu": "a az és hogy nem is egy ez de meg van azt csak mint már még vagy ha ki el le fel lehet amely kell volt",
    "ro": "de și în a la cu pe că nu este o un din pentru mai care se sau al ale prin dar fi poate sunt au ce",
    "vi": "và của là có không cho được các một trong với những này để người khi đã đó từ như tôi bạn thì ra làm cũng nhiều",
    "sw": "na ya wa kwa ni la za katika cha kama hii lakini au pia hiyo yako kuwa si mimi wewe",
    "tl": "ang ng sa na mga at ay ito para hindi ko mo ka may kung ako siya",
}

FUNCTION_WORDS = frozenset(word for words in _BY_LANGUAGE.values() for word in words.split())
