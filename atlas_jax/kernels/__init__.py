"""Operations with several forms: a plain one that defines, and faster ones that equal it."""
