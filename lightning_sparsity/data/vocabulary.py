"""The words that `Curves` writes, and the rule that keeps the splits apart."""

from typing import Literal
from zlib import crc32

__all__ = ["WORDS", "Split", "words_of"]

Split = Literal["train", "val", "test"]

TEXT = """
able above across again age air all also always and animal answer any apple area arm around ask
away baby back bad bag ball bank base bath bear beat bed bell best big bird black blood blow
blue board boat body bone book both box boy bread break bring brown build burn busy buy cake
call calm can car card care case cat catch cause chair change cheap check child city class
clean clear climb clock close cloud coal coat cold come cook cool corn cost count cover cow
cross crowd cry cup cut dance dark day dead deep dog door down draw dream dress drink drive dry
dust each ear early earth east easy eat edge egg eight end enemy even ever every eye face fact
fall far farm fast fat father feel few field fight fill find fine finger fire first fish five
flat floor flow flower fly food foot forest form four free fresh friend front fruit full game
garden gate girl give glad glass goat gold good grain grand grass gray great green ground grow
guess gun hair half hand happy hard hat have head hear heart heat heavy help here high hill
hold hole home hope horse hot hour house human hunt ice idea inch iron island job join judge
jump just keep key kind king knee know lady lake land large last late laugh lead leaf learn
leg letter life light line lion list live long look loud love low lucky lunch main make man
map mark market meal meat metal milk mind moon more month mother mouth move music name near
neck need nest never new night nine noise north nose note number ocean off oil old open orange
other over page paint pair paper park part past path peace pen people piece plan plant play
point poor power press print proud pull push queen quick quiet rain raise reach read red rest
rich ride right ring river road rock roof room root rope rose round rule run safe sail salt
sand say school sea seat second see seed send seven shade shape sharp sheep ship shoe shop
short show side sign silver sing six skin sky sleep slow small smile smoke snow soft soil song
soon sound south space speak spring stand star start steel step stone stop storm story street
strong sugar summer sun sure sweet swim table tail talk tall taste teach ten thank thick thin
think three throw tie time tired tool tooth touch town trade train tree trip true turn twenty
two uncle under usual valley voice wait walk wall want warm wash water wave way wear week west
wheat wheel white wide wife wild wind window wing winter wire wish wood wool word work world
write year yellow yes young zebra zero
"""
WORDS = tuple(TEXT.split())


def words_of(split: Split) -> tuple[str, ...]:
    """Words of one split: a checksum of the word decides, so no seed can move a word.

    Args:
        split: `"train"`, `"val"` or `"test"`. About 60, 20 and 20 % of `WORDS`, without overlap.
    """
    return tuple(word for word in WORDS if _split_of(word) == split)


def _split_of(word: str) -> Split:
    checksum = crc32(word.encode()) % 5
    return "test" if checksum == 0 else "val" if checksum == 1 else "train"
